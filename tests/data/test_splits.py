"""No document of the test split, and with drop no text of it, reaches what a model learns from or is selected by."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from conftest import TINY, launch, succeed_here
from stores import make_store

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import ClassifierConfig, Config, DataConfig, LMConfig, RuntimeConfig
from ulmfit_dist.data import splits as splits_module
from ulmfit_dist.data.splits import (
    describe_duplicates,
    missing_labels,
    num_dropped,
    random_split,
    split_documents,
    valid_is_test,
)
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.classifier import classifier_loaders
from ulmfit_dist.stages.lm import lm_loaders
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.utils.files import write_json

SIZES = {"train": 60, "valid": 20, "unlabelled": 20, "test": 30}
TEST_TOKENS = np.arange(100, 130)
"""Tokens of documents of the test split alone."""


def store_of(folder: Path, sizes: dict[str, int], hashes: np.ndarray | None = None) -> TokenStore:
    """A store of splits; each document of the test split begins with tokens that no other has."""
    documents, labels, ranges, start = [], [], {}, 0
    for split, size in sizes.items():
        first = 100 if split == "test" else 10
        documents += [np.array([first + i % 30, first + i * 7 % 30, 5, 6, 7]) for i in range(size)]
        labels += [NO_LABEL if split == "unlabelled" else i % 3 for i in range(size)]
        ranges[split] = [start, start + size]
        start += size
    store = make_store(folder, documents, np.array(labels), [f"w{i}" for i in range(140)])
    write_json(folder / "meta.json", {**store.meta, "splits": ranges})
    store = TokenStore(folder)
    if hashes is not None:
        store.text_hashes = hashes
    return store


CONFIG = Config(
    data=DataConfig(valid_pct=0.2),
    lm=LMConfig(global_batch_size=4, seq_len=5),
    classifier=ClassifierConfig(global_batch_size=8, seq_len=5),
    runtime=RuntimeConfig(precision="fp32"),
)


def tokens_read(store: TokenStore, config: Config, epochs: int = 2) -> dict[str, set[int]]:
    """Ids that each loader gives in its epochs."""
    runtime = Runtime(config.runtime)
    read: dict[str, set[int]] = {}
    for stage, loaders in (("lm", lm_loaders), ("classifier", classifier_loaders)):
        for side, loader in zip(("train", "valid"), loaders(config, runtime, store), strict=True):
            actual = read.setdefault(f"{stage} {side}", set())
            for epoch in range(epochs if side == "train" else 1):
                if side == "train":
                    loader.epoch = epoch
                for batches in loader:
                    for batch in batches:
                        actual |= set(batch.x.flatten().tolist())
                        actual |= set(batch.y.flatten().tolist()) if stage == "lm" else set()
    return read


@pytest.mark.usefixtures("no_process_group")
@pytest.mark.parametrize(
    ("sizes", "data", "valid_pct"),
    [
        (SIZES, {}, None),
        (SIZES, {}, 0.1),
        ({"train": 60, "test": 30}, {}, None),
        ({"train": 60, "unlabelled": 20, "test": 30}, {"folds": 3, "fold": 1}, None),
        ({"train": 60, "unlabelled": 20, "test": 30}, {"folds": 3, "fold": 2}, 0.2),
        (SIZES, {"on_duplicates": "drop"}, 0.1),
    ],
)
def test_no_token_of_a_test_document_is_read(sizes: dict[str, int], data: dict, valid_pct: float | None, tmp_path: Path):
    store = store_of(tmp_path / "store", sizes)
    config = replace(CONFIG, data=replace(CONFIG.data, **data), lm=replace(CONFIG.lm, valid_pct=valid_pct))
    read = tokens_read(store, config)
    assert len(read) == 4
    for side, tokens in read.items():
        assert tokens, side
        assert not tokens & set(TEST_TOKENS.tolist()), side
    splits = split_documents(store, config)
    assert splits.test.tolist() == store.split("test").tolist()


@pytest.mark.usefixtures("no_process_group")
@pytest.mark.parametrize("valid_pct", [None, 0.1])
def test_the_language_model_alone_reads_texts_of_the_test_split_where_the_recipe_says_so(
    valid_pct: float | None, tmp_path: Path
):
    store = store_of(tmp_path / "store", SIZES)
    config = replace(CONFIG, lm=replace(CONFIG.lm, use_test_texts=True, valid_pct=valid_pct))
    read = tokens_read(store, config)
    assert read["lm train"] & set(TEST_TOKENS.tolist())
    for side in ("classifier train", "classifier valid"):
        assert not read[side] & set(TEST_TOKENS.tolist())


def hashes_with_duplicates() -> np.ndarray:
    """Documents 0 and 1 have the texts of a valid and a test document, 61 that of a test document, 85 (unlabelled) too."""
    hashes = np.arange(130, dtype=np.uint64)
    hashes[0], hashes[1], hashes[61], hashes[85] = hashes[62], hashes[100], hashes[101], hashes[102]
    return hashes


def test_equal_texts_on_two_sides_are_counted_dropped_or_refused(tmp_path: Path):
    store = store_of(tmp_path / "store", SIZES, hashes_with_duplicates())
    warned = split_documents(store, CONFIG)
    described = describe_duplicates(store, warned, CONFIG)
    for part in (
        "1 of the training split in the valid split",
        "1 of the training split in the test split",
        "1 of the valid split in the test split",
        "1 of the language model's texts in its valid texts",
        "2 of the language model's texts in the test split",
    ):
        assert part in described
    config = replace(CONFIG, data=replace(CONFIG.data, on_duplicates="drop"))
    dropped = split_documents(store, config)
    assert set(warned.classifier_train) - set(dropped.classifier_train) == {0, 1}
    assert set(warned.classifier_valid) - set(dropped.classifier_valid) == {61}
    assert set(warned.lm_train) - set(dropped.lm_train) == {0, 1, 85}
    assert dropped.test.tolist() == warned.test.tolist()
    assert describe_duplicates(store, dropped, config) == ""
    assert num_dropped(store, config) == 4
    with pytest.raises(UserError, match=r"equal texts in two splits.*set data\.on_duplicates=drop"):
        split_documents(store, replace(CONFIG, data=replace(CONFIG.data, on_duplicates="error")))


def test_a_validation_on_the_split_named_test_is_known():
    for name, expected in (("test", True), ("test.csv", True), ("Test-00001-of-00002.parquet", True), ("valid", False)):
        assert valid_is_test(Config(data=DataConfig(splits={"train": "train", "valid": name}))) is expected
    assert not valid_is_test(Config())


@pytest.mark.parametrize(
    ("number", "fraction", "num_valid"), [(20, 0.25, 5), (10, 0.29, 2), (10, 0.31, 3), (3, 0.1, 0), (60, 0.2, 12)]
)
def test_a_validation_share_has_exactly_its_fraction_rounded_down(number: int, fraction: float, num_valid: int):
    documents = np.arange(100, 100 + number)
    train, valid = random_split(documents, fraction, 42, "valid")
    assert (len(train), len(valid)) == (number - num_valid, num_valid)
    assert np.union1d(train, valid).tolist() == documents.tolist()
    for part in (train, valid):
        assert part.tolist() == sorted(part.tolist())


def test_a_random_split_depends_on_the_seed_and_the_purpose_only():
    documents = np.arange(1000)
    valid = random_split(documents, 0.5, 42, "valid")[1]
    assert random_split(documents, 0.5, 42, "valid")[1].tolist() == valid.tolist()
    for other in (random_split(documents, 0.5, 43, "valid")[1], random_split(documents, 0.5, 42, "lm_valid")[1]):
        assert 150 < len(np.intersect1d(valid, other)) < 350
    assert len(np.intersect1d(valid, np.arange(500))) < 350  # drawn, not the first half


def test_the_splits_of_a_store_have_exactly_their_sizes(tmp_path: Path):
    store = store_of(tmp_path, {"train": 61, "unlabelled": 9, "test": 30})
    splits = split_documents(store, CONFIG)
    assert (len(splits.lm_train), len(splits.lm_valid)) == (49 + 9, 12)
    assert (len(splits.classifier_train), len(splits.classifier_valid)) == (49, 12)
    assert splits.lm_valid.tolist() == splits.classifier_valid.tolist()
    own_share = split_documents(store, replace(CONFIG, lm=replace(CONFIG.lm, valid_pct=0.1)))
    assert (len(own_share.lm_train), len(own_share.lm_valid)) == (63, 7)
    assert np.union1d(own_share.lm_train, own_share.lm_valid).tolist() == list(range(70))
    with_test = split_documents(store, replace(CONFIG, lm=replace(CONFIG.lm, valid_pct=0.1, use_test_texts=True)))
    assert (len(with_test.lm_train), len(with_test.lm_valid)) == (90, 10)
    shared = split_documents(store, replace(CONFIG, lm=replace(CONFIG.lm, use_test_texts=True)))
    assert shared.lm_train[-39:].tolist() == list(range(61, 100))


def test_splits_are_the_same_in_every_version(tmp_path: Path):
    """A run that resumes in a later version must not train on what it was validated on."""
    store = store_of(tmp_path, {"train": 24, "test": 5})
    splits = split_documents(store, replace(CONFIG, lm=replace(CONFIG.lm, valid_pct=0.2)))
    assert splits.classifier_valid.tolist() == [5, 9, 15, 21]
    assert splits.lm_valid.tolist() == [11, 13, 18, 20]
    folds = split_documents(store, replace(CONFIG, data=DataConfig(folds=5, fold=2)))
    assert folds.classifier_valid.tolist() == [5, 8, 15, 18, 22]


def test_documents_without_a_label_are_the_language_models_only(tmp_path: Path):
    store = store_of(tmp_path, SIZES)
    store.labels = np.where(np.arange(130) % 10 == 0, NO_LABEL, store.labels)
    splits = split_documents(store, CONFIG)
    assert (len(splits.lm_train), len(splits.lm_valid), len(splits.test_texts)) == (80, 20, 30)
    assert (len(splits.classifier_train), len(splits.classifier_valid), len(splits.test)) == (54, 18, 27)
    for part in (splits.classifier_train, splits.classifier_valid, splits.test):
        assert not (part % 10 == 0).any()
    assert missing_labels(store, CONFIG).startswith(
        "11 documents have no label: an empty one, or -1 (data.missing_label=-1;"
    )
    store.labels[:] = 0
    assert missing_labels(store, CONFIG) == ""


def test_folds_cover_each_document_once_and_each_class_evenly(tmp_path: Path):
    store = store_of(tmp_path, {"train": 61, "test": 30})
    parts = [split_documents(store, replace(CONFIG, data=DataConfig(folds=4, fold=fold))) for fold in range(4)]
    valid = [splits.classifier_valid for splits in parts]
    assert sorted(np.concatenate(valid).tolist()) == list(range(61))
    assert [len(part) for part in valid] == [16, 15, 15, 15]
    for splits in parts:
        assert np.union1d(splits.classifier_train, splits.classifier_valid).tolist() == list(range(61))
        assert np.ptp(np.bincount(store.labels[splits.classifier_valid])) <= 1
    other = split_documents(store, replace(CONFIG, seed=1, data=DataConfig(folds=4, fold=0))).classifier_valid
    assert other.tolist() != valid[0].tolist()
    assert np.diff(valid[0]).tolist() != [4] * 15  # shuffled


@pytest.mark.parametrize(
    ("sizes", "data", "message"),
    [
        (SIZES, {"folds": 3, "fold": 1}, r"data\.folds=3 .* 20 documents are in a valid split: set data\.folds=null"),
        ({"train": 60, "valid": 1}, {"folds": 3, "fold": 1}, "1 documents are in a valid split"),
        ({"train": 3, "test": 5}, {"valid_pct": 0.1}, "3 documents to train on and 0 to validate on: .* data.valid_pct=0.1"),
        ({"train": 0, "valid": 5}, {}, "0 documents to train on and 5 to validate on"),
    ],
)
def test_splits_that_cannot_be_made_are_named(sizes: dict[str, int], data: dict, message: str, tmp_path: Path):
    store = store_of(tmp_path, sizes)
    with pytest.raises(UserError, match=message):
        split_documents(store, replace(CONFIG, data=replace(CONFIG.data, **data)))


def test_a_training_of_duplicates_only_is_refused(tmp_path: Path):
    store = store_of(tmp_path, {"train": 10, "valid": 10, "test": 5}, np.arange(25, dtype=np.uint64) % 10)
    with pytest.raises(UserError, match="drop leaves no training document"):
        split_documents(store, replace(CONFIG, data=replace(CONFIG.data, on_duplicates="drop")))


def test_test_texts_that_the_language_model_may_read_are_no_duplicates_of_it(tmp_path: Path):
    store = store_of(tmp_path, SIZES, hashes_with_duplicates())
    config = replace(CONFIG, data=replace(CONFIG.data, on_duplicates="drop"), lm=replace(CONFIG.lm, use_test_texts=True))
    splits = split_documents(store, config)
    assert set(range(130)) - set(splits.lm_train) - set(splits.lm_valid) == {0, 101}  # texts of its validation
    assert 61 in splits.lm_valid
    assert 61 not in splits.classifier_valid
    assert num_dropped(store, config) == 2
    assert num_dropped(store, CONFIG) == 0
    pairs = [(first, other) for first, _, other, _ in splits.sides(reads_test=True)]
    assert len(pairs) == 4
    unread = [(first, other) for first, _, other, _ in splits.sides(reads_test=False)]
    assert unread[:4] == pairs
    assert unread[4:] == [
        ("the language model's texts", "the test split"),
        ("the language model's valid texts", "the test split"),
    ]


def test_a_document_in_two_splits_is_a_bug_that_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store, cut = store_of(tmp_path, SIZES), splits_module._cut_store

    def overlapping(store: TokenStore, config: Config) -> splits_module.DocumentSplits:
        splits = cut(store, config)
        return replace(splits, classifier_train=np.append(splits.classifier_train, splits.classifier_valid[:1]))

    monkeypatch.setattr(splits_module, "_cut_store", overlapping)
    with pytest.raises(RuntimeError, match="1 documents are in the training split and in the valid split"):
        split_documents(store, CONFIG)


def write_tables(folder: Path, **splits: list[tuple[str, str]]) -> None:
    folder.mkdir()
    for name, rows in splits.items():
        text = "".join(f"{text},{label}\n" for text, label in rows)
        (folder / f"{name}.csv").write_text(f"text,label\n{text}")


def sentences(number: int, word: str) -> list[tuple[str, str]]:
    return [
        (f"the {('good', 'bad')[i % 2]} {word} number {i} of {word}s was seen again", "ab"[i % 2]) for i in range(number)
    ]


@pytest.mark.usefixtures("no_process_group")
def test_the_vocabulary_knows_nothing_of_the_test_split_and_labels_do(tmp_path: Path):
    write_tables(tmp_path / "texts", train=sentences(40, "lamp"), valid=sentences(10, "soup"), test=sentences(30, "violin"))
    words = ["data.source=csv", f"data.path={tmp_path / 'texts'}", f"data.cache_dir={tmp_path}", "tokenizer.min_freq=1"]
    config = load_config(None, [*words, "data.documents_per_shard=16"])
    store = prepare(config, Runtime(config.runtime))
    assert {"lamp", "soup"} <= set(store.vocab)
    assert "violin" not in store.vocab
    assert store.meta["splits"] == {"train": [0, 40], "valid": [40, 50], "test": [50, 80]}
    assert store.meta["num_shards"] == 4 + 2  # the test split begins a shard of its own
    assert len(np.unique(store.text_hashes)) == 80
    assert set(store.labels[50:].tolist()) == {0, 1}
    assert store.meta["unknown"]["test"] > 0


RECIPE = [*TINY, "data.source=csv", "tracking.wandb_mode=disabled", "classifier.phases=[{epochs: 2, lr: 1e-2}]"]


def test_a_run_scores_its_test_split_once_and_every_rank_count_finds_the_same(recipe: Path, tmp_path: Path):
    import json

    train, test = sentences(40, "lamp"), sentences(21, "violin")
    write_tables(tmp_path / "texts", train=train, valid=sentences(10, "soup"), test=test)
    shared = [
        recipe,
        *RECIPE,
        f"data.path={tmp_path / 'texts'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        f"runs_dir={tmp_path}",
    ]
    shared += ["runtime.precision=fp64"]
    first = succeed_here(["run", *shared, "name=one"])
    assert "test, 21 documents, 95 % intervals: accuracy" in first
    two = launch(["-m", "ulmfit_dist", "run", *shared, "name=two"], 2)
    assert two.returncode == 0, two.stderr
    summaries = {name: json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")}
    figures = summaries["one"]["classifier"]["test"]
    assert figures["num_documents"] == 21
    for name, value in summaries["two"]["classifier"]["test"].items():
        np.testing.assert_allclose(value, figures[name], rtol=1e-9)
    written = (tmp_path / "one" / "predictions.parquet").stat().st_mtime_ns
    succeed_here(["run", *shared, "name=one"])  # all is done
    assert (tmp_path / "one" / "predictions.parquet").stat().st_mtime_ns == written
    table = pyarrow.parquet.read_table(tmp_path / "one" / "predictions.parquet")
    assert table.column_names == ["document", "split", "label", "predicted", "probabilities"]
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    assert [row["document"] for row in rows] == list(range(50, 71))
    assert np.mean([row["label"] == row["predicted"] for row in rows]) == pytest.approx(figures["accuracy"])
    again = json.loads(succeed_here(["evaluate", tmp_path / "one", "--split", "test", "--json", "--precision", "fp64"]))
    assert again["classifier"]["accuracy_interval"] == pytest.approx(figures["accuracy_interval"])
    new = succeed_here(["evaluate", tmp_path / "one", "--data", tmp_path / "texts" / "test.csv", "--json"])
    assert json.loads(new)["classifier"]["accuracy"] == pytest.approx(figures["accuracy"])
    (tmp_path / "new.csv").write_text("text,label\nsome lamp,c\n")
    with pytest.raises(AssertionError, match=r"new\.csv: 'c' is not a label of the classifier, whose labels are a, b"):
        succeed_here(["evaluate", tmp_path / "one", "--data", tmp_path / "new.csv"])
