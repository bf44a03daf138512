"""Evaluation of an exported classifier on its test split or on new labelled texts, with 95 % intervals.

New texts are tokenized with the model's vocabulary, as in `predict`, so they need no token store; ranks share them.
Trade-off: all new texts are held in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ulmfit_dist.config.schema import Config, DataConfig
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.sources.split_names import listed
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.targets import Targets, classes_of_label
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.answers import compute_answers, figures_of_answers, figures_of_documents, with_intervals
from ulmfit_dist.inference.predictor import TextClassifier
from ulmfit_dist.models.bundle import ModelBundle, find_model, read_bundle
from ulmfit_dist.stages.evaluate import check_functions, check_store
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".ndjson": "json"}
"""Values of `data.source` by file extension; all others are CSV."""
ROWS_AT_ONCE = 1000
"""Number of rows that are read at once."""


def evaluate_test_split(run: Path, runtime: Runtime, trust: bool = False) -> dict[str, Any]:
    """Return the figures of a run's classifier on its test split. Collective.

    Raises:
        UserError: the run has no classifier or no labelled test split, or the texts have changed.
    """
    exported = _classifier(run)
    check_functions(exported, trust)
    store = prepare(exported.config, runtime)
    with runtime.fail_together():
        check_store(exported, store)
        documents_N = split_documents(store, exported.config).test
        if not len(documents_N):
            raise UserError(f"{run}: the texts have no labelled test split: evaluate new texts with --data FILE")
    answers_NC = compute_answers(exported, store, documents_N, runtime, trust)
    return figures_of_documents(exported, store, documents_N, answers_NC, runtime)


def evaluate_texts(run: Path, path: Path, runtime: Runtime, trust: bool = False) -> dict[str, Any]:
    """Return the figures of a run's classifier on new labelled texts. Collective.

    Args:
        path: a CSV, TSV, JSON or Parquet file with the columns of the run's config, or a folder with a sub-folder per class.

    Raises:
        UserError: the run has no classifier, or the texts cannot be read, have an unknown label or no label.
    """
    exported = _classifier(run)
    config, labels = exported.config, exported.labels or []
    texts: list[str] = []
    names: list[str] = []
    with runtime.fail_together():
        num_skipped = 0
        for text, label in _documents(_data_config(config, path)):
            if text is None or label is None:
                num_skipped += 1
            else:
                texts.append(text)
                names.append(label)
        if not texts:
            raise UserError(f"{path}: no text has a label: name the label column as in the run's config (data.label_col)")
        y_N = _targets(names, labels, config, path)
        if num_skipped:
            logger.warning(f"{path}: skipping {num_skipped:,} documents that have no label or cannot be read")
        local = slice(runtime.rank, None, runtime.world_size)
        classifier = TextClassifier(exported.folder, runtime.device, trust)
        outputs = 1 if config.classifier.target == "regression" else len(labels)
        answers_NC = torch.zeros(len(texts), outputs, dtype=torch.float64, device=runtime.device)
        if texts[local]:
            answers_NC[local] = torch.from_numpy(classifier.predict_proba(texts[local])).to(answers_NC)
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


def _data_config(config: Config, path: Path) -> DataConfig:
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
    )


def _documents(data: DataConfig) -> Iterator[tuple[str | None, str | None]]:
    source = open_source(data)
    split = "test" if "test" in source.splits else "train"
    unused = [f"the {other} split" for other in source.splits if other != split]
    notices = [*source.notices, *([f"{data.path}: ignoring {', '.join(unused)}"] if unused else [])]
    for notice in notices:
        logger.warning(notice)
    documents = source.splits[split]
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
