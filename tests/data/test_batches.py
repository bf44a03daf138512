"""Batches against fastai's, and against themselves on other numbers of ranks. No process is started: a rank is a number."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fastai.text.data import LMDataLoader, pad_chunk
from fastcore.foundation import L
from stores import make_store

from ulmfit_dist.config.schema import ClassifierConfig, Config, RuntimeConfig
from ulmfit_dist.data import classifier_loader
from ulmfit_dist.data.batches import IGNORED, BatchLayout, BatchShard, MicroBatch, make_batch_shard
from ulmfit_dist.data.classifier_loader import ClassifierLoader, pad_chunks
from ulmfit_dist.data.lm_loader import STEPS_READ, LMLoader
from ulmfit_dist.data.prefetch import prefetch_to_device
from ulmfit_dist.data.token_store import TokenStore, shard_stem
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.distributed.launch_settings import LaunchSettings, Named
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.dropout import DropoutContext
from ulmfit_dist.models.networks import SentenceEncoder

B, T = 8, 5


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """103 documents in 11 shards; each token says where it stands: no two are the same."""
    lengths = np.random.default_rng(0).integers(1, 60, 103)
    ids = np.arange(2, 2 + lengths.sum())
    documents = np.split(ids, np.cumsum(lengths)[:-1])
    return make_store(tmp_path_factory.mktemp("store"), documents, np.arange(103) % 3, ["xxunk"])


def shard(rank: int = 0, world_size: int = 1, micro: int | None = None, canonical: int | None = None) -> BatchShard:
    return make_batch_shard(rank, world_size, RuntimeConfig(micro_batch_size=micro, canonical_ranks=canonical))


def layout(*ranks: int | None, rows: int = B, seq_len: int = T, backwards: bool = False) -> BatchLayout:
    return BatchLayout(rows, seq_len, shard(*ranks), backwards)


def lm_batches(store: TokenStore, *ranks: int | None, seed: int | None = 1) -> LMLoader:
    return LMLoader(store, store.split("train"), layout(*ranks), seed)


def stacked(loader, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    batches = loader.step(step)
    return torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches])


def classifier_batches(store: TokenStore, *ranks: int | None, seed: int | None = 1) -> ClassifierLoader:
    return ClassifierLoader(store, store.split("train"), layout(*ranks), seed)


def test_a_store_gives_back_its_documents(store: TokenStore):
    documents = np.concatenate([store.document(i) for i in range(len(store))])
    assert documents.tolist() == list(range(2, 2 + int(store.lengths.sum())))


def test_lm_batches_are_fastais_where_nothing_is_shuffled(store: TokenStore):
    ours = lm_batches(store)
    ours._order, ours._ends = ours.documents, np.cumsum(store.lengths)  # the order of the corpus, the cut of training
    documents = L([(torch.from_numpy(store.document(i).astype(np.int64)),) for i in range(len(store))])
    reference = list(LMDataLoader(documents, lens=store.lengths.tolist(), bs=B, seq_len=T))
    assert len(reference) == len(ours)
    for step, (x, y) in enumerate(reference):
        assert torch.equal(stacked(ours, step)[0], torch.as_tensor(x))
        assert torch.equal(stacked(ours, step)[1], torch.as_tensor(y))


CUTS = [(2, None, None), (4, None, None), (8, None, None), (1, 2, None), (2, 3, None), (1, None, 2), (2, 1, 4)]


@pytest.mark.parametrize(("world_size", "micro", "canonical"), CUTS)
def test_lm_rows_of_all_ranks_are_those_of_one(store: TokenStore, world_size: int, micro: int | None, canonical: int | None):
    alone, ranks = lm_batches(store), [lm_batches(store, rank, world_size, micro, canonical) for rank in range(world_size)]
    for epoch in range(2):
        for loader in (alone, *ranks):
            loader.set_epoch(epoch)
        for step in range(len(alone)):
            x, y = zip(*(stacked(loader, step) for loader in ranks), strict=True)
            assert torch.equal(torch.cat(x), stacked(alone, step)[0])
            assert torch.equal(torch.cat(y), stacked(alone, step)[1])
            assert sum(batch.weight for loader in ranks for batch in loader.step(step)) == pytest.approx(1)


def test_lm_epochs_differ_and_come_back_the_same(store: TokenStore):
    loader = lm_batches(store)
    first = stacked(loader, 0)[0]
    loader.set_epoch(1)
    assert not torch.equal(stacked(loader, 0)[0], first)
    assert torch.equal(stacked(lm_batches(store), 0)[0], first)


@pytest.mark.parametrize("world_size", [1, 2])
def test_lm_validation_predicts_every_token_once(store: TokenStore, world_size: int):
    seen: list[int] = []
    for rank in range(world_size):
        for batches in lm_batches(store, rank, world_size, seed=None):
            for batch in batches:
                counted = batch.y != IGNORED
                assert torch.equal(batch.x[counted] + 1, batch.y[counted])  # tokens are numbered in order
                seen += batch.y[counted].tolist()
    assert sorted(seen) == list(range(3, 2 + int(store.lengths.sum())))


LENGTHS = {
    "of all lengths": np.random.default_rng(0).integers(1, 60, 103),
    "of one token": np.ones(300, dtype=int),
    "hardly more than rows": np.array([1, 6, 7]),
    "longer than rows": np.array([3, 1000, 1, 2, 3, 900, 5]),
}


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("seed", [1, None])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_lm_batches_are_the_stream_cut_into_rows(lengths: np.ndarray, seed: int | None, backwards: bool, tmp_path: Path):
    draw = np.random.default_rng(0)
    documents = [draw.integers(2, 2**16, length) for length in lengths]
    store = make_store(tmp_path, documents, np.zeros(len(documents)), [])
    for ranks in ((0, 1), (1, 2), (7, 8), (1, 2, 3), (0, 2, None, 8), (0, 1, 3, 2)):
        loader = LMLoader(store, store.split("train")[1:], layout(*ranks, backwards=backwards), seed)
        for epoch in range(2):
            loader.set_epoch(epoch)
            x, y = stream_cut_into_rows(loader, [document[:: -1 if backwards else 1] for document in documents])
            in_order = [(step, loader.step(step)) for step in range(len(loader))]
            from_the_middle = list(enumerate(loader.from_step(len(loader) // 2), len(loader) // 2))
            anywhere = [(step, loader.step(step)) for step in draw.permutation(len(loader)).tolist()]
            for step, batches in in_order + from_the_middle + anywhere:
                for batch in batches:
                    where = np.s_[batch.rows.start : batch.rows.stop, step * T : (step + 1) * T]
                    assert torch.equal(batch.x, x[where])
                    assert torch.equal(batch.y, y[where])
                    assert batch.global_tokens == B * batch.x.shape[1]


def stream_cut_into_rows(loader: LMLoader, documents: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """x and y of all rows over the whole epoch, [B, row_len]."""
    stream = torch.from_numpy(np.concatenate([documents[i] for i in loader._order]))
    missing = max(0, B * loader.row_len + 1 - len(stream))
    x, y = (torch.nn.functional.pad(stream, (0, missing), value=filler) for filler in (PAD_ID, IGNORED))
    end = B * loader.row_len
    return x[:end].view(B, -1), y[1 : end + 1].view(B, -1)


def test_lm_batches_that_were_handed_out_stay_as_they_are(store: TokenStore):
    loader = lm_batches(store)
    kept = list(loader)
    copies = [[batch.x.clone() for batch in batches] for batches in kept]
    loader.set_epoch(1)
    list(loader)
    for batches, as_they_were in zip(kept, copies, strict=True):
        assert all(torch.equal(batch.x, x) for batch, x in zip(batches, as_they_were, strict=True))


def test_lm_training_drops_less_than_a_token_per_row(store: TokenStore):
    trained = sum(batch.y.numel() for batches in lm_batches(store) for batch in batches)
    assert 0 <= int(store.lengths.sum()) - 1 - trained < B


@pytest.mark.parametrize("copies", [1, 20])
def test_a_step_of_the_language_model_reads_no_more_of_a_larger_corpus(
    store: TokenStore, copies: int, monkeypatch: pytest.MonkeyPatch
):
    loader = LMLoader(store, np.tile(store.split("train"), copies), layout(), seed=1)
    read: list[int] = []
    pieces = store.pieces
    monkeypatch.setattr(store, "pieces", lambda *which: read.append((which[2] - which[1]).sum()) or pieces(*which))
    for step in range(len(loader)):
        loader.step(step)
    steps = [min(STEPS_READ * T, loader.row_len - step * T) for step in range(0, len(loader), STEPS_READ)]
    assert read == [B * (tokens + 1) for tokens in steps]
    read.clear()
    next(loader.from_step(30))
    assert sum(read) <= B * (STEPS_READ * T + 1)


def test_backwards_reads_each_document_from_its_end(store: TokenStore):
    loader = LMLoader(store, store.split("train")[:1], layout(rows=1, seq_len=100, backwards=True))
    assert stacked(loader, 0)[0][0].tolist() == store.document(0)[::-1][:-1].tolist()


def test_too_little_text_and_uneven_ranks_are_refused(store: TokenStore):
    with pytest.raises(UserError, match="too few for 99 rows"):
        LMLoader(store, store.split("train")[:1], layout(rows=99), seed=1)
    with pytest.raises(UserError, match=r"lm\.global_batch_size=8 cannot be shared evenly by 3 ranks: make it 6 or 9"):
        lm_batches(store, 0, 3)
    with pytest.raises(UserError, match=r"classifier\.global_batch_size=8 cannot be shared evenly by 6 canonical ranks"):
        classifier_batches(store, 0, 2, None, 6)


def test_canonical_ranks_are_cut_alike_on_any_number_of_ranks_that_divides_them(store: TokenStore):
    for batches in (lm_batches, classifier_batches):
        for world_size in (2, 4):
            ranks = [batches(store, rank, world_size, None, 4) for rank in range(world_size)]
            parts = [part for loader in ranks for part in loader.step(3)]
            alone = batches(store, 0, 1, None, 4).step(3)
            assert len(parts) == len(alone) == 4
            for part, expected in zip(parts, alone, strict=True):
                assert part.rows == expected.rows
                assert torch.equal(part.x, expected.x)
    assert shard(0, 3, None, 4).num_canonical_ranks == 3  # four do not come out even on three
    assert shard(0, 8, None, 4).num_canonical_ranks == 8


@pytest.mark.parametrize("seed", [1, None])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_classifier_ranks_share_each_global_batch(store: TokenStore, world_size: int, seed: int | None):
    alone = classifier_batches(store, seed=seed)
    ranks = [classifier_batches(store, rank, world_size, 3, seed=seed) for rank in range(world_size)]
    seen: list[int] = []
    for step in range(len(alone)):
        (whole,) = alone.step(step)
        parts = [batch for loader in ranks for batch in loader.step(step)]
        rows = {row: (x, y) for part in parts for row, x, y in zip(part.rows, part.x, part.y, strict=True)}
        assert sorted(rows) == list(whole.rows)
        assert torch.equal(torch.stack([rows[row][0] for row in whole.rows]), whole.x)
        assert torch.equal(torch.stack([rows[row][1] for row in whole.rows]), whole.y)
        assert sum(part.weight for part in parts) == pytest.approx(1)
        sizes = [sum(len(batch.rows) for batch in loader.step(step)) for loader in ranks]
        assert max(sizes) - min(sizes) <= 1
        seen += [int(row[row != 1][0]) for row in whole.x]
    assert sorted(seen) == sorted(int(store.document(i)[0]) for i in range(len(store)))


def test_classifier_batches_of_training_are_never_too_small(store: TokenStore):
    sizes = [len(batches[0].rows) for batches in classifier_batches(store)]
    assert sum(sizes) == len(store)
    assert min(sizes) >= B
    assert max(sizes) <= B + 1


@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_classifier_ranks_have_equally_many_micro_batches_none_empty(store: TokenStore, world_size: int, micro: int):
    ranks = [
        ClassifierLoader(store, store.split("train"), layout(r, world_size, micro, rows=6), 1) for r in range(world_size)
    ]
    for step in range(len(ranks[0])):
        pieces = [[len(batch.rows) for batch in loader.step(step)] for loader in ranks]
        assert len({len(sizes) for sizes in pieces}) == 1
        assert all(1 <= size <= micro + 1 for sizes in pieces for size in sizes)


def test_padding_is_fastais(store: TokenStore):
    documents = sorted((store.document(i) for i in range(9)), key=len, reverse=True)
    width = len(documents[0])
    reference = [pad_chunk(torch.from_numpy(d.astype(np.int64)), seq_len=T, pad_len=width) for d in documents]
    assert torch.equal(pad_chunks(documents, width, T), torch.stack(reference))


@pytest.mark.parametrize("seed", [1, None])
def test_the_rows_of_a_chunk_are_those_that_have_begun(store: TokenStore, seed: int | None):
    for rank, world_size, micro in ((0, 1, None), (0, 2, 3), (1, 4, 2)):
        loader = ClassifierLoader(store, store.split("train"), layout(rank, world_size, micro, rows=16), seed)
        for batch in (batch for batches in loader for batch in batches):
            text_bT = batch.x != PAD_ID
            assert batch.chunk_rows == [*text_bT[:, ::T].sum(0).tolist()[:-1], len(batch.rows)]


def test_an_encoder_that_is_given_the_rows_of_its_chunks_counts_none(store: TokenStore, monkeypatch: pytest.MonkeyPatch):
    encoder = SentenceEncoder(T, PositionsRead(), PAD_ID, None)
    batches = [batch for step in ClassifierLoader(store, store.split("train"), layout(rows=16)) for batch in step]
    assert max(len(batch.chunk_rows) for batch in batches) > 1
    counted = [encoder(batch.x) for batch in batches]
    monkeypatch.setattr(torch.Tensor, "tolist", None)
    for batch, expected in zip(batches, counted, strict=True):
        for one, other in zip(encoder(batch.x, batch.chunk_rows), expected, strict=True):
            assert torch.equal(one, other)


class PositionsRead(torch.nn.Module):
    """Stands in for the network in an encoder of whole documents, and counts what it is given."""

    def __init__(self):
        super().__init__()
        self.position, self.count = DropoutContext(), 0

    def reset(self) -> None: ...

    def forward(self, x_bT: torch.Tensor) -> torch.Tensor:
        self.count += x_bT.numel()
        return torch.zeros(*x_bT.shape, 1)


@pytest.mark.parametrize("seed", [1, None])
def test_less_than_a_twentieth_of_what_the_classifier_reads_is_padding(seed: int | None, tmp_path: Path):
    """Lengths are those of IMDb's reviews, nearly; as few documents as there are to a run that is sorted by length."""
    lengths = np.random.default_rng(0).lognormal(np.log(200), 0.8, 3200).astype(int) + 1
    store = make_store(tmp_path, [np.full(length, 2) for length in lengths], np.zeros(3200), [])
    for world_size, micro in ((1, None), (2, 5)):
        network = PositionsRead()
        encoder = SentenceEncoder(72, network, PAD_ID, 1440)
        for rank in range(world_size):
            loader = ClassifierLoader(
                store, store.split("train"), layout(rank, world_size, micro, rows=64, seq_len=72), seed
            )
            for batches in loader:
                for batch in batches:
                    encoder(batch.x)
        assert lengths.sum() < network.count < lengths.sum() / 0.95


DEVICES = ["cpu", "meta", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", [torch.device(name) for name in DEVICES], ids=DEVICES)
def test_a_step_is_sent_to_a_gpu_ahead_of_the_one_that_is_used(store: TokenStore, device: torch.device):
    loader, taken = classifier_batches(store, 0, 1, 3), []
    steps = (taken.append(step) or batches for step, batches in enumerate(loader))
    for step, moved in enumerate(prefetch_to_device(steps, device)):
        assert len(taken) == (step + 1 if device.type == "cpu" else min(step + 2, len(loader)))
        for there, here in zip(moved, loader.step(step), strict=True):
            assert there.x.device.type == there.y.device.type == device.type
            assert there.rows == here.rows
            assert device.type == "meta" or torch.equal(there.x.cpu(), here.x)
            assert device.type == "meta" or torch.equal(there.y.cpu(), here.y)
    assert taken == list(range(len(loader)))


def test_a_store_cut_short_is_refused(store: TokenStore, tmp_path: Path):
    for file in store.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokens = tmp_path / f"{shard_stem(3, 11)}.tokens"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(UserError, match="shard-00003-of-00011"):
        TokenStore(tmp_path)
    (tmp_path / "meta.json").unlink()
    with pytest.raises(UserError, match="no token store here"):
        TokenStore(tmp_path)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_truncated_document_is_read_from_its_beginning(store: TokenStore, backwards: bool):
    whole = ClassifierLoader(store, store.split("train"), layout(rows=6))
    cut = ClassifierLoader(store, store.split("train"), layout(rows=6, backwards=backwards), max_doc_tokens=7)
    assert max(batch.x.shape[1] for (batch,) in whole) > 7
    for (batch,) in cut:
        for x_T, document in zip(batch.x, batch.documents, strict=True):
            expected = store.document(document)[:7][:: -1 if backwards else 1]
            assert x_T[x_T != PAD_ID].tolist() == expected[expected != PAD_ID].tolist()
        assert batch.global_tokens == sum(min(7, len(store.document(i))) for i in batch.documents)


def test_a_shard_is_one_canonical_rank_or_as_many_as_each_rank_gets():
    assert shard(2, 4) == BatchShard(range(2, 3), 4, None, exact=False)
    assert shard(1, 2, 3, 8) == BatchShard(range(4, 8), 8, 3, exact=True)
    assert shard(1, 2, None, 2) == BatchShard(range(1, 2), 2, None, exact=True)
    assert shard(1, 4, None, 6) == BatchShard(range(1, 2), 4, None, exact=False)
    assert shard(0, 4, None, 2) == BatchShard(range(1), 4, None, exact=False)
    assert BatchShard() == shard()


@pytest.mark.parametrize(
    ("of_config", "at_most", "expected"), [(None, None, None), (4, None, 4), (None, 2, 2), (4, 2, 2), (1, 2, 1)]
)
def test_a_micro_batch_is_the_smaller_of_config_and_memory(of_config: int | None, at_most: int | None, expected: int | None):
    settings = RuntimeConfig(micro_batch_size=of_config)
    assert make_batch_shard(0, 1, settings, at_most).micro_batch_size == expected


@pytest.mark.parametrize(
    ("rows", "micro", "canonical", "sizes"),
    [
        (8, None, 1, [8]),
        (8, 3, 1, [2, 3, 3]),
        (8, 8, 1, [8]),
        (8, 99, 1, [8]),
        (8, 4, 2, [4]),
        (8, 3, 2, [2, 2]),
        (7, 2, 2, [1, 2]),  # another rank has four rows, so this one's three are two micro-batches, too
        (3, 1, 2, [1]),  # the other rank has two rows, but this one has one only
        (1, 1, 1, [1]),
    ],
)
def test_rows_are_cut_into_micro_batches_of_similar_size(rows: int, micro: int | None, canonical: int, sizes: list[int]):
    own = BatchShard(range(1), canonical, micro)
    local = range(10, 10 + rows // canonical)
    pieces = own.cut(local, rows)
    assert [len(piece) for piece in pieces] == sizes
    assert [row for piece in pieces for row in piece] == list(local)
    assert own.num_pieces(rows) == len(sizes)


def test_strided_rows_are_cut_in_their_order():
    assert BatchShard(range(1), 2, 2).cut(range(1, 9, 2), 8) == [range(1, 5, 2), range(5, 9, 2)]


@pytest.mark.parametrize(
    ("rows", "micro", "canonical", "at_once", "halved"),
    [
        (8, None, 1, 8, 4),
        (8, 4, 1, 4, 2),
        (7, None, 2, 4, 2),
        (8, 3, 1, 3, 2),
        (8, 1, 1, 1, None),
        (3, 1, 2, 2, None),
        (2, None, 2, 1, None),
    ],
)
def test_a_micro_batch_is_halved_until_it_has_one_row(
    rows: int, micro: int | None, canonical: int, at_once: int, halved: int | None
):
    own = BatchShard(range(1), canonical, micro)
    assert own.rows_at_once(rows) == at_once
    assert own.halved(rows) == halved


@pytest.mark.parametrize(
    ("own", "steps", "expected"),
    [
        (BatchShard(), None, None),
        (BatchShard(), 1, None),
        (BatchShard(), 2, 4),
        (BatchShard(), 8, 1),
        (BatchShard(micro_batch_size=3), 2, 3),
        (BatchShard(micro_batch_size=3), 4, 2),
        (BatchShard(range(2, 4), 4), 2, None),
        (BatchShard(range(2, 4), 4), 4, 1),
        (BatchShard(range(1, 2), 2), 2, 2),
        (BatchShard(range(1), 3), 5, None),  # `check` refuses this one
    ],
)
def test_the_launchers_steps_determine_the_micro_batch_size(own: BatchShard, steps: int | None, expected: int | None):
    named = None if steps is None else Named(steps, "--gradient_accumulation_steps")
    assert own.in_steps(named, 8, "lm.global_batch_size") == replace(own, micro_batch_size=expected or own.micro_batch_size)


@pytest.mark.parametrize(
    ("own", "steps", "message"),
    [
        (
            BatchShard(),
            3,
            "a rank computes 8 rows of k=8, which cannot be cut into 3 equal micro-batches: use one of 1, 2, 4, 8",
        ),
        (BatchShard(range(1, 2), 2), 8, "a rank computes 4 rows of k=8, .* use one of 1, 2, 4$"),
        (BatchShard(range(2), 4), 3, r"4 rows of k=8 as 2 canonical ranks \(runtime.canonical_ranks\), .* use one of 2, 4$"),
        (BatchShard(range(2), 4), 8, "cannot be cut into 8 equal micro-batches: use one of 2, 4$"),
    ],
)
def test_steps_that_do_not_divide_the_rows_are_refused(own: BatchShard, steps: int, message: str):
    with pytest.raises(UserError, match=f"^--steps: .*{message}"):
        own.in_steps(Named(steps, "--steps"), 8, "k")


def test_a_batch_that_is_smaller_than_the_ranks_names_the_next_size_only():
    with pytest.raises(UserError, match=r"k=3 cannot be shared evenly by 4 ranks: make it 4$"):
        BatchShard(range(1), 4).check(3, "k")
    BatchShard(range(1), 4).check(8, "k")


def test_a_micro_batch_weighs_its_fraction_of_the_rows_and_moves_with_its_metadata():
    batch = MicroBatch(torch.ones(3, 2), torch.zeros(3), range(1, 4), 12, 24, np.arange(3), [1, 3])
    assert batch.weight == 0.25
    moved = batch.to(torch.device("meta"))
    assert moved.x.device.type == moved.y.device.type == "meta"
    assert (moved.x.shape, moved.y.shape) == ((3, 2), (3,))
    assert (moved.rows, moved.global_rows, moved.global_tokens, moved.chunk_rows) == (range(1, 4), 12, 24, [1, 3])
    assert moved.documents is batch.documents


@pytest.mark.parametrize(("size", "expected"), [(1, 32), (8, 32), (12, 24), (32, 32), (48, 48)])
def test_small_batches_are_evaluated_several_at_a_time(size: int, expected: int, store: TokenStore):
    config = Config(classifier=ClassifierConfig(global_batch_size=size, seq_len=T))
    runtime, documents = (
        SimpleNamespace(rank=0, world_size=1, micro_batch_size=None, launch=LaunchSettings()),
        np.arange(100),
    )
    loader = classifier_loader.classifier_batches(config, runtime, store, documents)
    assert [len(step[0].rows) for step in loader] == [min(expected, 100 - i) for i in range(0, 100, expected)]
    assert sorted(np.concatenate([loader.documents_of_step(i)[0] for i in range(len(loader))])) == documents.tolist()
    assert classifier_loader.classifier_batches(config, runtime, store, documents, seed=1).global_batch_size == size
    small = SimpleNamespace(rank=0, world_size=1, micro_batch_size=4, launch=LaunchSettings())
    pieces = classifier_loader.classifier_batches(config, small, store, documents).step(0)
    assert max(len(piece.rows) for piece in pieces) <= 4  # the limit of the memory holds here, too
