"""No test document reaches what a model learns from or is selected by: by the token ids of every step, for each source.

Test documents alternate two words that the vocabulary knows, and that never stand side by side in another document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import TINY
from corpora import WRITERS, Rows
from datasets import Dataset, DatasetDict

from ulmfit_dist import with_texts
from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.classifier import classifier_loaders
from ulmfit_dist.stages.cross_validate import configs_of_folds
from ulmfit_dist.stages.lm import lm_loaders
from ulmfit_dist.stages.prepare import prepare

LABELS = ("pos", "neg")
TEST: Rows = [("alpha omega " * (10 + i), LABELS[i % 2]) for i in range(14)]
SOURCES = [*WRITERS, "frame", "hub"]


def documents(number: int, begin: int) -> Rows:
    words = ("alpha", "omega")
    return [
        (f"the {words[i % 2]} number {i} was seen near the other {words[i % 2]}", LABELS[i % 2])
        for i in range(begin, begin + number)
    ]


def config_of(kind: str, folder: Path, splits: dict[str, Rows], *words: str) -> Config:
    """A recipe whose texts these splits are, in a source of this kind."""
    shared = [*TINY, f"data.cache_dir={folder / 'cache'}", f"runs_dir={folder / 'runs'}", *words]
    if kind == "frame":
        parts = {
            name: Dataset.from_dict({"text": [text for text, _ in rows], "label": [label for _, label in rows]})
            for name, rows in splits.items()
        }
        return with_texts(load_config(None, ["data.path=.", *shared]), DatasetDict(parts))
    source, writer = WRITERS["csv" if kind == "hub" else kind]
    for name, rows in splits.items():
        writer(str(folder / "texts" / name), rows)
    return load_config(None, [f"data.source={'hub' if kind == 'hub' else source}", f"data.path={folder / 'texts'}", *shared])


def batches_read(store: TokenStore, config: Config, runtime: Runtime) -> Iterator[tuple[str, MicroBatch]]:
    """All that the steps of two epochs, and of a validation, read of each stage: its side, and a batch."""
    for stage, loaders in (("lm", lm_loaders), ("classifier", classifier_loaders)):
        train, valid = loaders(config, runtime, store)
        for epoch in range(2):
            train.epoch = epoch
            yield from ((f"{stage} train", batch) for micro_batches in train for batch in micro_batches)
        yield from ((f"{stage} valid", batch) for micro_batches in valid for batch in micro_batches)


def pairs_of(batch: MicroBatch) -> set[tuple[int, int]]:
    """Tokens that stand side by side in a batch; a language model's targets follow its inputs."""
    rows = batch.x.tolist()
    if batch.documents is None:
        rows += zip(batch.x.flatten().tolist(), batch.y.flatten().tolist(), strict=True)
    return {pair for row in rows for pair in pairwise(row)}


def sides_with_test_documents(config: Config) -> tuple[set[str], set[str]]:
    """The sides that were read, and those of them that read a test document."""
    runtime = Runtime(config.runtime)
    store = prepare(config, runtime)
    alpha, omega = store.vocab.index("alpha"), store.vocab.index("omega")
    test = set(store.split("test").tolist())
    assert len(test) == len(TEST)
    assert {alpha, omega} <= set(store.document(min(test)).tolist())
    sides, wrong = set(), set()
    for side, batch in batches_read(store, config, runtime):
        sides.add(side)
        if (alpha, omega) in pairs_of(batch) or (batch.documents is not None and test & set(batch.documents)):
            wrong.add(side)
    return sides, wrong


ALL_SIDES = {"lm train", "lm valid", "classifier train", "classifier valid"}


@pytest.mark.usefixtures("no_process_group")
@pytest.mark.parametrize("kind", SOURCES)
def test_no_step_reads_a_test_document(kind: str, tmp_path: Path):
    splits = {"train": documents(30, 0), "validation": documents(12, 30), "unsupervised": documents(12, 42), "test": TEST}
    config = config_of(kind, tmp_path, splits)
    assert sides_with_test_documents(config) == (ALL_SIDES, set())
    whole = replace(config, lm=replace(config.lm, use_test_texts=True))
    assert sides_with_test_documents(whole) == (ALL_SIDES, {"lm train"})


@pytest.mark.usefixtures("no_process_group")
@pytest.mark.parametrize("kind", SOURCES)
def test_no_step_of_a_cross_validation_reads_a_test_document(kind: str, tmp_path: Path):
    config = config_of(kind, tmp_path, {"train": documents(40, 0), "test": TEST}, "data.folds=3", "lm.valid_pct=0.2")
    for fold in configs_of_folds(config):
        assert sides_with_test_documents(fold) == (ALL_SIDES, set())


@pytest.mark.usefixtures("no_process_group")
@pytest.mark.parametrize("kind", SOURCES)
def test_a_test_split_that_is_cut_is_read_by_no_step_and_by_no_vocabulary(kind: str, tmp_path: Path):
    config = config_of(kind, tmp_path, {"train": documents(60, 0)}, "data.test_pct=0.2")
    runtime = Runtime(config.runtime)
    store = prepare(config, runtime)
    assert len(store.split("test")) == 12
    read = {i for _, batch in batches_read(store, config, runtime) if batch.documents is not None for i in batch.documents}
    assert read == set(range(48))
    known = [number for number in range(60) if str(number) in store.vocab]
    assert len(known) == 48
    other_seed = prepare(replace(config, seed=7), runtime)
    assert other_seed.fingerprint == store.fingerprint
    with pytest.raises(UserError, match=r"was made with 0\.2: set it to null"):
        prepare(replace(config, data=replace(config.data, token_store=str(store.path), test_pct=0.1)), runtime)


@pytest.mark.parametrize(
    ("share", "message"),
    [("0.5", "the source has a test split of 14 documents"), ("0.01", "30 training documents is less than one document")],
)
def test_a_test_split_that_cannot_be_cut_is_refused(share: str, message: str, tmp_path: Path):
    splits = {"train": documents(30, 0), **({"test": TEST} if share == "0.5" else {})}
    config = config_of("csv", tmp_path, splits, f"data.test_pct={share}")
    with pytest.raises(UserError, match=message):
        prepare(config, Runtime(config.runtime))
