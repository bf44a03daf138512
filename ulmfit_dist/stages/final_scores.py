"""Scoring of a run's exported classifier on its test split at the end of `run`, and its predictions.

`predictions.parquet` has a row for each labelled document of the valid and test splits (`data/prediction_table.py`).
Trade-off: one more pass over the validation documents, so that runs can be compared later without their models.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.prediction_table import PREDICTIONS, digest_of_texts, encode_metadata
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.inference.answers import compute_answers, figures_of_documents
from ulmfit_dist.inference.outputs import prediction_of
from ulmfit_dist.models.bundle import ModelBundle, read_bundle
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.utils.files import write_bytes
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


def score_test_split(
    config: Config, runtime: Runtime, store: TokenStore, tracker: Tracker, scores_test: bool = True
) -> None:
    """Score the exported classifier on the test split and write the predictions, unless they exist. Collective.

    A fold of a cross-validation is not scored, because folds are used to select a config.

    Args:
        scores_test: False writes predictions of the valid split only.
    """
    splits = split_documents(store, config)
    if not scores_test:
        splits = replace(splits, test=splits.test[:0])
    elif len(store.split("test")) and config.data.folds is not None:
        logger.info("the test split is not scored in a cross-validation: train without data.folds to score it once")
        return
    elif len(store.split("test")) and not len(splits.test):
        logger.info("the test split has no labels: it is not scored")
    if runtime.broadcast_object(tracker.has_predictions(needs_test=len(splits.test) > 0)):
        return
    exported = read_bundle(config.run_dir / "classifier")
    answers = {}
    for split, documents_N in (("valid", splits.classifier_valid), ("test", splits.test)):
        if len(documents_N):
            answers[split] = documents_N, compute_answers(exported, store, documents_N, runtime, trust=True)
    if "test" in answers:
        figures = figures_of_documents(exported, store, *answers["test"], runtime)
        tracker.finish_test({name: value for name, value in figures.items() if is_short(name, value)})
    with runtime.fail_together():
        if runtime.is_main:
            rows = {split: (documents, part.cpu().numpy()) for split, (documents, part) in answers.items()}
            write_predictions(config.run_dir / PREDICTIONS, exported, store, rows)


def write_predictions(
    path: Path, exported: ModelBundle, store: TokenStore, answers: dict[str, tuple[np.ndarray, np.ndarray]]
) -> None:
    """Write the predictions of documents.

    Args:
        answers: by split, indices in the store, int64 [N], and probabilities or numbers, float64 [N, C].
    """
    labels, settings = exported.labels or [], exported.config.classifier
    columns: dict[str, list[Any]] = {"document": [], "split": [], "label": [], "predicted": [], "probabilities": []}
    for split, (documents_N, answers_NC) in answers.items():
        columns["document"] += documents_N.tolist()
        columns["split"] += [split] * len(documents_N)
        columns["label"] += [store.label_names[label] for label in store.labels[documents_N].tolist()]
        columns["probabilities"] += answers_NC.tolist()
        predictions = [prediction_of(row, labels, settings) for row in answers_NC.tolist()]
        columns["predicted"] += [_predicted(prediction, exported.config.data.label_delim) for prediction in predictions]
    types = {"document": pa.int64(), "probabilities": pa.list_(pa.float64())}
    if settings.target == "regression":
        columns["number"] = [row[0] for row in columns.pop("probabilities")]
        del columns["predicted"]
        types["number"] = pa.float64()
    arrays = {name: pa.array(values, types.get(name, pa.string())) for name, values in columns.items()}
    metadata = {
        "labels": labels,
        "target": settings.target,
        "threshold": settings.threshold,
        "label_delim": exported.config.data.label_delim,
        "texts": {split: digest_of_texts(store.text_hashes[documents_N]) for split, (documents_N, _) in answers.items()},
    }
    table = pa.table(arrays).replace_schema_metadata(encode_metadata(metadata))
    buffer = pa.BufferOutputStream()
    pa.parquet.write_table(table, buffer)
    write_bytes(path, buffer.getvalue().to_pybytes())


def _predicted(prediction: Any, delimiter: str) -> str:
    return str(prediction.label) if hasattr(prediction, "label") else delimiter.join(getattr(prediction, "labels", []))


def is_short(name: str, value: Any) -> bool:
    """Return True for figures of summary.json: numbers and intervals."""
    return isinstance(value, (int, float)) or name.endswith("_interval")
