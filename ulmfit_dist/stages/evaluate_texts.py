"""Evaluation of an exported classifier on its test split or on new labelled texts, with 95 % intervals.

New texts are tokenized with the model's vocabulary, as in `predict`, so they need no token store; ranks share them. They are
read twice, first for their labels, so that a wrong label is reported at once; a rank holds the texts of one part in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ulmfit_dist.config.schema import Config, DataConfig
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.sources.base import TextDataset
from ulmfit_dist.data.sources.split_names import listed
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.targets import Targets, classes_of_label
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.answers import compute_answers, figures_of_answers, figures_of_documents, with_intervals
from ulmfit_dist.inference.saved_ensemble import open_classifier
from ulmfit_dist.models.bundle import ModelBundle, find_model, read_bundle
from ulmfit_dist.models.ensemble_file import is_ensemble, read_ensemble, read_ensemble_members
from ulmfit_dist.stages.evaluate import check_functions, check_store
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".ndjson": "json"}
"""Values of `data.source` by file extension; all others are CSV."""
ROWS_AT_ONCE = 1000
"""Number of rows that are read at once."""


def evaluate_test_split(run: Path, runtime: Runtime, trust: bool = False, quantize: str | None = None) -> dict[str, Any]:
    """Return the figures of a run's classifier on its test split. Collective.

    Raises:
        UserError: the run has no classifier or no labelled test split, or the texts have changed.
    """
    if is_ensemble(run):
        from ulmfit_dist.stages.evaluate_saved import evaluate_ensemble_run  # imports this package's other evaluations

        return evaluate_ensemble_run(run, runtime, trust, "test", quantize)
    exported = _classifier(run)
    check_functions(exported, trust)
    store = prepare(exported.config, runtime)
    with runtime.fail_together():
        check_store(exported, store)
        documents_N = split_documents(store, exported.config).test
        if not len(documents_N):
            raise UserError(f"{run}: the texts have no labelled test split: evaluate new texts with --data FILE")
    answers_NC = compute_answers(exported, store, documents_N, runtime, trust, quantize)
    return figures_of_documents(exported, store, documents_N, answers_NC, runtime)


def evaluate_texts(
    run: Path,
    path: Path,
    runtime: Runtime,
    trust: bool = False,
    columns: Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> dict[str, Any]:
    """Return the figures of a run's classifier on new labelled texts. Collective.

    Args:
        path: a CSV, TSV, JSON or Parquet file with the columns of the run's config, or a folder with a sub-folder per class.
        columns: `text_col` and `label_col` in place of those of the run's config.
        quantize: as for `TextClassifier`.

    Raises:
        UserError: the run has no classifier, or the texts cannot be read, have an unknown label or no label.
    """
    with runtime.fail_together():
        exported = read_ensemble_members(run, read_ensemble(run))[0] if is_ensemble(run) else _classifier(run)
    config, labels = exported.config, exported.labels or []
    with runtime.fail_together():
        documents = _open_documents(_data_config(config, path, columns or {}))
        names, num_skipped = _read_labels(documents)
        if not names:
            raise UserError(f"{path}: no text has a label: name its column with --label-col, or as data.label_col")
        y_N = _targets(names, labels, config, path)
        if num_skipped:
            logger.warning(f"{path}: skipping {num_skipped:,} documents that have no label or cannot be read")
        classifier = open_classifier(run if is_ensemble(run) else exported.folder, runtime.device, trust, quantize)
        outputs = 1 if config.classifier.target == "regression" else len(labels)
        answers_NC = torch.zeros(len(names), outputs, dtype=torch.float64, device=runtime.device)
        number = 0
        for part, texts in enumerate(_labelled_texts(documents)):
            if texts and part % runtime.world_size == runtime.rank:
                answers_NC[number : number + len(texts)] = torch.from_numpy(classifier.predict_proba(texts)).to(answers_NC)
            number += len(texts)
    answers_NC = runtime.all_reduce_sum(answers_NC)
    targets = Targets(config.classifier.target, labels, torch.arange(len(labels)))
    figures = figures_of_answers(answers_NC, y_N, targets, config.classifier, runtime)
    return with_intervals(figures, answers_NC, y_N, config)


def _classifier(run: Path) -> ModelBundle:
    folder = find_model(run, "classifier")
    if folder is None:
        raise UserError(
            f"{run}: no classifier model here: give a run directory with one, or the folder of an exported model"
        )
    return read_bundle(folder)


def _data_config(config: Config, path: Path, columns: Mapping[str, Any]) -> DataConfig:
    """Return the data section of the run, changed to read new texts."""
    if not path.exists():
        raise UserError(f"--data {path}: no such file or folder")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    source = "folder" if path.is_dir() else next((KINDS[suffix] for suffix in suffixes if suffix in KINDS), "csv")
    return replace(
        config.data,
        source=source,
        path=str(path),
        splits={},
        splitter=None,
        valid_col=None,
        max_documents=None,
        token_store=None,
        **columns,
    )


def _open_documents(data: DataConfig) -> TextDataset:
    source = open_source(data)
    split = "test" if "test" in source.splits else "train"
    unused = [f"the {other} split" for other in source.splits if other != split]
    notices = [*source.notices, *([f"{data.path}: ignoring {', '.join(unused)}"] if unused else [])]
    for notice in notices:
        logger.warning(notice)
    return source.splits[split]


def _read_labels(documents: TextDataset) -> tuple[list[str], int]:
    """Return the labels of the documents that have a text and a label, and the number of the others."""
    names = [label for text, label in _rows(documents) if text is not None and label is not None]
    return names, len(documents) - len(names)


def _labelled_texts(documents: TextDataset) -> Iterator[list[str]]:
    """Yield the texts of labelled documents, in parts."""
    for start in range(0, len(documents), ROWS_AT_ONCE):
        texts, labels = documents.read(start, min(start + ROWS_AT_ONCE, len(documents)))
        yield [text for text, label in zip(texts, labels, strict=True) if text is not None and label is not None]


def _rows(documents: TextDataset) -> Iterator[tuple[str | None, str | None]]:
    for start in range(0, len(documents), ROWS_AT_ONCE):
        yield from zip(*documents.read(start, min(start + ROWS_AT_ONCE, len(documents))), strict=True)


def _targets(names: list[str], labels: list[str], config: Config, path: Path) -> Tensor:
    """Return the targets: int64 [N], bool [N, C] or float64 [N]. Raises UserError for unknown labels."""
    if config.classifier.target == "regression":
        return torch.tensor([_number(name, path) for name in names], dtype=torch.float64)
    multiple = config.classifier.target == "multicategory"
    classes = [classes_of_label(name, config.data.label_delim) if multiple else [name] for name in names]
    if unknown := sorted({name for document in classes for name in document} - set(labels)):
        raise UserError(
            f"{path}: {listed(map(repr, unknown))} is not a label of the classifier, whose labels are {listed(labels)}: "
            f"correct these rows, or leave their labels empty"
        )
    y_NC = torch.zeros(len(names), len(labels), dtype=torch.bool)
    for row, document in enumerate(classes):
        y_NC[row, [labels.index(name) for name in document]] = True
    return y_NC if multiple else y_NC.int().argmax(1)


def _number(name: str, path: Path) -> float:
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{path}: the label {name!r} is not a number, but the classifier has classifier.target=regression")
    return value
