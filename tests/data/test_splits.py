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
from ulmfit_dist.data.splits import describe_duplicates, num_dropped, split_documents, valid_is_test
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
