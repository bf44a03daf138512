"""Pseudo-labels: their file, the documents that a classifier trains on, and the check of a resumed run."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from stores import make_store

from ulmfit_dist.checkpointing.compatibility import differences
from ulmfit_dist.config.loading import load_config, to_dict
from ulmfit_dist.config.schema import ClassifierConfig, Config, DataConfig, RuntimeConfig
from ulmfit_dist.data.pseudo_labels import PseudoLabels, digest_of_pseudo_labels, documents_digest, read_pseudo_labels
from ulmfit_dist.data.splits import measured_texts, split_documents
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.classifier import classifier_loaders, classifier_loss

SPLITS = {"train": [0, 20], "valid": [20, 30], "unlabelled": [30, 50], "test": [50, 60]}
VALID = documents_digest(np.arange(*SPLITS["valid"]))
LABELS = np.array([*[0, 1, NO_LABEL, 1] * 5, *[0, 1] * 5, *[NO_LABEL] * 20, *[1, 0] * 5])


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    documents = [np.full(3 + i % 4, 2 + i % 7) for i in range(60)]
    store = make_store(tmp_path / "store", documents, LABELS, [f"w{i}" for i in range(9)])
    store.meta["splits"], store.label_names = SPLITS, ["neg", "pos"]
    return store


def pseudo(documents: list[int], names: list[str] | None = None, **metadata) -> PseudoLabels:
    names = names or ["pos"] * len(documents)
    confidences = np.linspace(0.5, 0.9, len(documents))
    return PseudoLabels(np.array(documents), names, confidences, {"fingerprint": "x", "valid": VALID, **metadata})


def config_with(path: Path | None, **classifier) -> Config:
    settings = ClassifierConfig(global_batch_size=4, seq_len=5, pseudo_labels=path and str(path), **classifier)
    return Config(classifier=settings)


def loaders(store: TokenStore, config: Config):
    return classifier_loaders(config, Runtime(RuntimeConfig(precision="fp32")), store)


def targets_by_document(store: TokenStore, config: Config) -> dict[int, set[int]]:
    """Return the targets that an epoch gives for each document, from all its batches."""
    actual: dict[int, set[int]] = {}
    for batches in loaders(store, config)[0]:
        for batch in batches:
            for document, y in zip(batch.documents.tolist(), batch.y.tolist(), strict=True):
                actual.setdefault(document, set()).add(y)
    return actual


def test_a_file_is_read_as_it_was_written_and_has_no_text(tmp_path: Path):
    written = pseudo([3, 7, 41], ["pos", "neg", "pos"], teacher="mean", share=0.5)
    written.write(tmp_path / "a.parquet")
    actual = read_pseudo_labels(tmp_path / "a.parquet")
    assert actual.documents.tolist() == [3, 7, 41]
    assert actual.names == ["pos", "neg", "pos"]
    assert actual.confidences.tolist() == written.confidences.tolist()
    assert actual.metadata == written.metadata
    assert actual.counts() == {"neg": 1, "pos": 2}
    assert pyarrow.parquet.read_schema(tmp_path / "a.parquet").names == ["document", "label", "confidence"]


def test_the_digest_is_of_documents_and_labels():
    digest = pseudo([3, 7]).digest
    assert dataclasses.replace(pseudo([3, 7], share=1), confidences=np.ones(2)).digest == digest
    assert pseudo([3, 8]).digest != digest
    assert pseudo([3, 7], ["pos", "neg"]).digest != digest


def test_unlabelled_documents_are_those_of_training_without_a_label(store: TokenStore):
    expected = [*range(2, 20, 4), *range(30, 50)]
    assert split_documents(store, Config()).unlabelled.tolist() == expected
    folds = Config(data=DataConfig(folds=2))
    store.meta["splits"] = {"train": [0, 20], "unlabelled": [30, 50]}
    assert set(split_documents(store, folds).unlabelled) < set(expected)


def test_texts_of_valid_and_test_are_counted_or_dropped(store: TokenStore):
    store.text_hashes = store.text_hashes.copy()
    store.text_hashes[[30, 31, 2]] = store.text_hashes[[20, 55, 0]]  # of valid, of test, and of training
    splits = split_documents(store, Config())
    assert splits.unlabelled[measured_texts(store, splits)].tolist() == [30, 31]
    dropped = split_documents(store, Config(data=DataConfig(on_duplicates="drop")))
    assert sorted(set(splits.unlabelled) - set(dropped.unlabelled)) == [30, 31]


def test_an_epoch_has_labelled_and_pseudo_labelled_documents_and_valid_is_as_before(store: TokenStore, tmp_path: Path):
    pseudo([2, 31, 40], ["neg", "pos", "neg"]).write(tmp_path / "a.parquet")
    before, config = config_with(None), config_with(tmp_path / "a.parquet")
    expected = {i: {int(LABELS[i])} for i in range(20) if LABELS[i] != NO_LABEL}
    assert targets_by_document(store, before) == expected
    assert targets_by_document(store, config) == {**expected, 2: {0}, 31: {1}, 40: {0}}
    assert loaders(store, config)[1].documents.tolist() == list(range(20, 30))
    assert store.labels.tolist() == LABELS.tolist()


def test_labelled_documents_are_repeated_and_weights_count_all(store: TokenStore, tmp_path: Path):
    pseudo([31, 40], ["neg", "neg"]).write(tmp_path / "a.parquet")
    config = config_with(tmp_path / "a.parquet", repeat_labelled=3, class_weights="balanced")
    train, _ = loaders(store, config)
    documents, counts = np.unique(train.documents, return_counts=True)
    assert set(counts[documents < 20]) == {3}
    assert set(counts[documents > 20]) == {1}
    counts_C = np.array([3 * 5 + 2, 3 * 10])
    assert classifier_loss(config, train).class_weights == pytest.approx((counts_C.mean() / counts_C).tolist())
    rows = [int(i) for step in train for batch in step for i in batch.documents]
    assert sorted(rows) == train.documents.tolist()
    assert torch.equal(next(iter(train))[0].y, next(iter(loaders(store, config)[0]))[0].y)


@pytest.mark.parametrize("document", [0, 25, 55])
def test_a_document_with_a_label_or_of_valid_or_test_is_refused(store: TokenStore, tmp_path: Path, document: int):
    pseudo(sorted([document, 40])).write(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=rf"a\.parquet: document {document} is labelled, or of the valid or test split"):
        loaders(store, config_with(tmp_path / "a.parquet"))


def test_a_teacher_that_had_another_valid_split_is_refused(store: TokenStore, tmp_path: Path):
    path = tmp_path / "a.parquet"
    pseudo([40], valid=documents_digest(np.arange(20, 29))).write(path)
    with pytest.raises(UserError, match=r"a\.parquet was made with another valid split"):
        loaders(store, config_with(path))


def test_another_store_and_another_class_are_refused(store: TokenStore, tmp_path: Path):
    path = tmp_path / "a.parquet"
    dataclasses.replace(pseudo([40]), metadata={"fingerprint": "y"}).write(path)
    with pytest.raises(UserError, match=r"a\.parquet was made for another token store than .*store: .*--fresh"):
        loaders(store, config_with(path))
    pseudo([40], ["sad"]).write(path)
    with pytest.raises(UserError, match=r"label 'sad' is not a class of .*store: delete the file"):
        loaders(store, config_with(path))


def test_a_missing_or_damaged_file_is_one_line(tmp_path: Path):
    path = tmp_path / "a.parquet"
    with pytest.raises(UserError, match=r"classifier\.pseudo_labels=.*a\.parquet: no such file: 'ulmfit-dist self-train"):
        read_pseudo_labels(path)
    good = {"document": pa.array([1, 2]), "label": pa.array(["a", "b"]), "confidence": pa.array([0.5, 0.6])}
    wrong = [
        {**good, "document": pa.array([2, 2])},
        {**good, "label": pa.array(["a", None])},
        {**good, "document": pa.array(["x", "y"])},
        {"document": good["document"]},
    ]
    for columns in wrong:
        pyarrow.parquet.write_table(pa.table(columns), path)
        with pytest.raises(UserError, match=r"a\.parquet: damaged, or no pseudo-labels \(.*\): delete it"):
            read_pseudo_labels(path)
    path.write_bytes(b"PAR1 and more PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: damaged"):
        read_pseudo_labels(path)
    table = pa.table(good).replace_schema_metadata({"fingerprint": "not JSON"})
    pyarrow.parquet.write_table(table, path)
    with pytest.raises(UserError, match=r"a\.parquet: damaged"):
        read_pseudo_labels(path)


def test_a_run_is_resumed_with_the_same_content_wherever_the_file_is(tmp_path: Path):
    for name, documents in (("a", [1, 2]), ("moved", [1, 2]), ("other", [1, 3])):
        pseudo(documents).write(tmp_path / f"{name}.parquet")
    then = config_with(tmp_path / "a.parquet")
    digest, old = digest_of_pseudo_labels(then), to_dict(then)
    assert differences("classifier", config_with(tmp_path / "moved.parquet"), old, "x", "x", digest) == []
    changed = ["classifier.pseudo_labels"]
    assert differences("classifier", config_with(tmp_path / "other.parquet"), old, "x", "x", digest) == changed
    assert differences("classifier", config_with(None), old, "x", "x", digest) == changed
    assert differences("classifier", then, old, "x", "x", None) == changed
    assert differences("lm", config_with(None), old, "x", "x", digest) == []


def test_pseudo_labels_are_single_classes():
    with pytest.raises(UserError, match=r"classifier\.target=multicategory: leave out pseudo_labels"):
        load_config(None, ["data.path=x", "classifier.target=multicategory", "classifier.pseudo_labels=a.parquet"])


def test_metadata_are_json(tmp_path: Path):
    pseudo([1], ["ä"], confidences={"ä": 0.5}).write(tmp_path / "a.parquet")
    metadata = pyarrow.parquet.read_schema(tmp_path / "a.parquet").metadata
    assert json.loads(metadata[b"confidences"]) == {"ä": 0.5}
    assert SimpleNamespace(**read_pseudo_labels(tmp_path / "a.parquet").metadata).confidences == {"ä": 0.5}
