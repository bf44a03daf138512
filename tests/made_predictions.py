"""Predictions of runs that nobody has trained, written as a run writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from stores import make_store

from ulmfit_dist.config.schema import ClassifierConfig, Config, DataConfig
from ulmfit_dist.data.targets import read_targets
from ulmfit_dist.models.bundle import ModelBundle
from ulmfit_dist.stages.final_scores import write_predictions

CONFIG = Config(data=DataConfig(source="bbc_news"))


def write_answers(
    run: Path,
    labels: Sequence[str],
    answers_NC: np.ndarray,
    target: str = "category",
    split: str = "test",
    hashes: np.ndarray | None = None,
    threshold: float = 0.5,
    num_others: int = 0,
) -> Path:
    """Write `predictions.parquet` into a run directory, which is made if it is not there.

    Args:
        labels: of each document.
        answers_NC: to each document.
        hashes: of the texts; by default those of the documents' numbers.
        num_others: documents of the store before these, as another training text would add.
    """
    run.mkdir(parents=True, exist_ok=True)
    names = sorted(set(labels))
    numbers = np.array([0] * num_others + [names.index(label) for label in labels])
    store = make_store(run / "store", [np.array([1])] * len(numbers), numbers, ["xxunk", "xxpad"])
    documents_N = np.arange(num_others, len(numbers))
    store.label_names = names
    store.text_hashes = np.arange(len(numbers), dtype=np.uint64)
    store.text_hashes[documents_N] = np.arange(len(documents_N)) if hashes is None else hashes
    config = replace(CONFIG, classifier=ClassifierConfig(target=target, threshold=threshold))
    classes = read_targets(store, config.classifier, ";").names
    exported = ModelBundle(run / "classifier", config, store.vocab, classes, {})
    write_predictions(run / "predictions.parquet", exported, store, {split: (documents_N, answers_NC)})
    (run / "config.yaml").touch()
    return run


def one_hot(output: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return answers that give each document one class, float64 [N, C]."""
    return np.eye(len(classes))[[list(classes).index(name) for name in output]]


def right_on(labels: Sequence[str], right: Sequence[bool]) -> np.ndarray:
    """Return answers that are right on these documents, and on the others the next class."""
    classes = sorted(set(labels))
    places = [classes.index(label) + (0 if is_right else 1) for label, is_right in zip(labels, right, strict=True)]
    return np.eye(len(classes))[np.array(places) % len(classes)]
