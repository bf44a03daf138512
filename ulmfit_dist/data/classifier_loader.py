"""Batches for the classifier: documents of like length together, dealt evenly to the ranks.

An epoch shuffles the documents, sorts each run of fifty batches by length, cuts it into batches and shuffles those, as
fastai's `SortedDL` does; here all of it follows from `(seed, epoch)`. A batch, longest document first, is dealt like cards,
so all ranks get the same lengths within a card. The documents that do not fill a last batch are spread over the others: no
document is left out, and no batch is too small for the ranks or for batch norm. What ranks are here are virtual ranks.

Every micro-batch is padded to the longest document of the global batch, so a row's padding, and with it AR and TAR, do not
depend on the cut. Padding stands in front in whole chunks of `seq_len`, which the encoder skips, as fastai's `Pad_Chunk`.

b: documents of a micro-batch, T: tokens of the longest document.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.batches import BatchShard, MicroBatch, make_batch_shard
from ulmfit_dist.data.targets import Targets, one_class_each, read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.rng.counter_based import permutation

BATCHES_SORTED_TOGETHER = 50


class ClassifierLoader:
    """A rank's documents of each global batch.

    Args:
        store: the corpus.
        documents: indices of labelled documents in the store.
        global_batch_size: documents of a step, over all ranks.
        seq_len: chunk that padding is counted in.
        share: which of the documents of a batch are this rank's.
        seed: shuffles each epoch; None goes from the longest to the shortest, for validation.
        backwards: read each document from its end.
        max_doc_tokens: tokens of a document that are read, from its beginning; None for all.
        targets: what the store's labels stand for; None for a class each.

    Raises:
        UserError: fewer documents to train on than ranks, or batches that cannot be shared evenly.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: np.ndarray,
        global_batch_size: int,
        seq_len: int,
        share: BatchShard,
        seed: int | None = None,
        backwards: bool = False,
        max_doc_tokens: int | None = None,
        targets: Targets | None = None,
    ):
        share.check(global_batch_size, "classifier.global_batch_size")
        if seed is not None and len(documents) < share.num_canonical_ranks:
            raise UserError(f"{len(documents)} labelled documents for {share.num_canonical_ranks} ranks: start fewer ranks")
        self.store, self.documents, self.share, self.seed = store, documents, share, seed
        self.targets = targets or one_class_each(store.label_names)
        self.global_batch_size, self.seq_len = global_batch_size, seq_len
        self.direction = -1 if backwards else 1
        self.lengths = store.lengths if max_doc_tokens is None else np.minimum(store.lengths, max_doc_tokens)
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self._batches)

    def to(self, device: torch.device) -> None:
        """Nothing to move: micro-batches go to the device one step ahead (`data/prefetch.py`)."""

    def set_share(self, share: BatchShard) -> None:
        """Cut the steps from here on into other micro-batches of the same documents."""
        self.share = share

    def set_epoch(self, epoch: int) -> None:
        """Form the global batches of the epoch."""
        self._batches = self._sorted() if self.seed is None else self._shuffled(self.seed, epoch)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return self.from_step(0)

    def from_step(self, first: int) -> Iterator[list[MicroBatch]]:
        """The steps of the epoch from one on: nothing before it is read."""
        return map(self.step, range(first, len(self)))

    def step(self, step: int) -> list[MicroBatch]:
        """The micro-batches of one step; none where the batch has fewer documents than there are ranks."""
        batch = self._batches[step]
        dealt = [range(rank, len(batch), self.share.num_canonical_ranks) for rank in self.share.canonical_ranks]
        pieces = [rows for part in dealt if part for rows in self.share.cut(part, len(batch))]
        return [self._micro_batch(batch, rows) for rows in pieces]

    def _sorted(self) -> list[np.ndarray]:
        by_length = self._longest_first(self.documents)
        return [by_length[i : i + self.global_batch_size] for i in range(0, len(by_length), self.global_batch_size)]

    def _shuffled(self, seed: int, epoch: int) -> list[np.ndarray]:
        num_batches = max(1, len(self.documents) // self.global_batch_size)
        shuffled = self.documents[permutation(len(self.documents), seed, "classifier", "order", epoch)]
        num_runs = -(-num_batches // BATCHES_SORTED_TOGETHER)
        sorted_runs = [self._longest_first(run) for run in np.array_split(shuffled, num_runs)]
        batches = np.array_split(np.concatenate(sorted_runs), num_batches)
        batches = [self._longest_first(batches[i]) for i in permutation(num_batches, seed, "classifier", "batches", epoch)]
        longest = max(range(num_batches), key=lambda i: self.lengths[batches[i][0]])
        batches.insert(0, batches.pop(longest))  # so that a batch too large for the memory fails at once
        return batches

    def _longest_first(self, documents: np.ndarray) -> np.ndarray:
        return documents[np.argsort(-self.lengths[documents], kind="stable")]

    def _micro_batch(self, batch: np.ndarray, rows: range) -> MicroBatch:
        documents = batch[rows.start : rows.stop : rows.step]
        tokens = self.store.pieces(documents, np.zeros_like(documents), self.lengths[documents])
        width = int(self.lengths[batch[0]])
        x_bT = pad_chunks([piece[:: self.direction] for piece in tokens], width, self.seq_len)
        y = self.targets.of(self.store.labels[documents])
        chunk_rows = rows_by_chunk(self.lengths[documents], width, self.seq_len)
        return MicroBatch(x_bT, y, rows, len(batch), int(self.lengths[batch].sum()), documents, chunk_rows)


def rows_by_chunk(lengths_b: np.ndarray, width: int, seq_len: int) -> list[int]:
    """Numbers of documents that have begun by each chunk of the output of `pad_chunks`; the last chunk is read by all."""
    begun_b = (width - lengths_b) // seq_len
    num_chunks = -(-width // seq_len)
    return [*(int((begun_b <= chunk).sum()) for chunk in range(num_chunks - 1)), len(lengths_b)]


def pad_chunks(documents: list[np.ndarray], width: int, seq_len: int) -> torch.Tensor:
    """Documents as one tensor, int64 [b, width]: padding in front in whole chunks of `seq_len`, the rest behind."""
    x_bT = np.full((len(documents), width), PAD_ID, dtype=np.int64)
    for x_T, tokens in zip(x_bT, documents, strict=True):
        begin = (width - len(tokens)) // seq_len * seq_len
        x_T[begin : begin + len(tokens)] = tokens
    return torch.from_numpy(x_bT)


def classifier_batches(
    config: Config, runtime: Runtime, store: TokenStore, documents: np.ndarray, seed: int | None = None
) -> ClassifierLoader:
    """Batches of this rank, of documents by index in the store; without a seed in an order by length."""
    settings = config.classifier
    share = make_batch_shard(runtime.rank, runtime.world_size, config.runtime, runtime.micro_batch_size)
    share = share.in_steps(runtime.launch.accumulation_steps, settings.global_batch_size, "classifier.global_batch_size")
    targets = read_targets(store, settings, config.data.label_delim)
    shape = (settings.global_batch_size, settings.seq_len, share)
    return ClassifierLoader(store, documents, *shape, seed, config.model.backwards, settings.max_doc_tokens, targets)
