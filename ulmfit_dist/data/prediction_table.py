"""`predictions.parquet` of a run directory: the classifier's prediction for each labelled document of valid and test.

Columns: `document` (index in the token store), `split`, `label`, `predicted` and `probabilities` in the order of the
labels; `number` instead for a regression. The schema's metadata has `labels`, `target`, `threshold`, `label_delim` and
`texts`: a digest of each split's texts in order. Two runs with equal digests were measured on the same texts, even with
other tokenizers and training texts. The file has no text and no hash of a single text, from which a short text could be
guessed. Trade-off: the same texts in another order have another digest.

A run directory is untrusted input: sizes are checked before reading, and every value after it.

N: documents, C: classes, or 1 for a regression.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import read_bounded
from ulmfit_dist.utils.text_table import plain

PREDICTIONS = "predictions.parquet"
METADATA = ("labels", "target", "threshold", "label_delim", "texts")
TARGETS = ("category", "multicategory", "regression")
MOST_BYTES = 2**30
"""Maximum file size, in bytes."""
MOST_VALUES = 2**28
"""Maximum number of probabilities, or of rows of a regression."""
DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
    RecursionError,
    MemoryError,
    NotImplementedError,
    pa.ArrowException,
)
"""Exceptions of pyarrow and of `_check` for a damaged file."""


@dataclass(frozen=True)
class SplitAnswers:
    """Predictions for the labelled documents of a split, in the order of the token store.

    Attributes:
        texts: digest of the texts.
        y: targets: classes, int64 [N]; membership of each class, bool [N, C]; or numbers, float64 [N].
        answers: predicted probabilities of the classes, or predicted numbers, float64 [N, C].
    """

    texts: str
    y: np.ndarray
    answers: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """Predictions of a run.

    Attributes:
        run: the run directory.
        target: category, multicategory or regression.
        labels: class names; empty for a regression.
        threshold: minimum probability of a class, for multicategory.
        splits: predictions of valid and test, if present.
    """

    run: Path
    target: str
    labels: list[str]
    threshold: float
    splits: dict[str, SplitAnswers]


def digest_of_texts(hashes_N: np.ndarray) -> str:
    """Return a digest of texts in order, given their hashes, uint64 [N]."""
    return hashlib.blake2b(hashes_N.astype("<u8").tobytes(), digest_size=16).hexdigest()


def encode_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the schema's metadata, with values encoded as JSON."""
    return {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}


def read_predictions(run: Path) -> Predictions:
    """Read the predictions of a run directory.

    Raises:
        UserError: not a run directory, no predictions yet, or a damaged file.
    """
    path = run / PREDICTIONS
    try:
        return _parse(run, read_bounded(path, MOST_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        raise _no_predictions(run) from None
    except (OSError, *DAMAGE) as error:
        reason = plain(error.strerror or str(error) if isinstance(error, OSError) else str(error))
        raise UserError(
            f"{path}: damaged, or not written by this version ({reason[:200]}): delete it, and "
            f"'ulmfit-dist run {run / 'config.yaml'}' writes it again"
        ) from None


def _no_predictions(run: Path) -> UserError:
    if not run.is_dir():
        return UserError(f"{run}: no such folder: name a run directory, such as runs/quickstart")
    if (run / "model.safetensors").is_file():
        return UserError(f"{run}: an exported model, which has no {PREDICTIONS}: name the run directory, {run.parent}")
    if (run / "config.yaml").is_file():
        return UserError(f"{run}: no {PREDICTIONS} in it: finish the run with 'ulmfit-dist run {run / 'config.yaml'}'")
    return UserError(f"{run}: not a run directory (no {PREDICTIONS} in it): name one, such as runs/quickstart")


def _parse(run: Path, content: bytes) -> Predictions:
    """Return the predictions of a file. Raises OSError or one of `DAMAGE` for a damaged file."""
    file = pa.parquet.ParquetFile(pa.BufferReader(content))
    metadata = file.schema_arrow.metadata or {}
    missing = [key for key in METADATA if key.encode() not in metadata]
    _check(not missing, f"metadata without {', '.join(missing)}")
    labels, target, threshold, delimiter, texts = (json.loads(metadata[key.encode()]) for key in METADATA)
    _check(target in TARGETS, "unknown target")
    _check(isinstance(threshold, (int, float)) and 0 <= threshold <= 1, "threshold is not a probability")
    _check(isinstance(labels, list) and all(isinstance(label, str) for label in labels), "labels are not strings")
    _check(len(set(labels)) == len(labels) and bool(labels) == (target != "regression"), "labels do not match the target")
    _check_size(file, max(len(labels), 1))
    answers = "number" if target == "regression" else "probabilities"
    table = file.read(columns=["split", "label", answers])
    _check(not any(column.null_count for column in table.columns), "missing values")
    answers_NC = _answers(table.column(answers), len(labels))
    y = _targets(table.column("label"), target, labels, delimiter)
    split_N = np.array(table.column("split").cast(pa.string()).to_pylist(), dtype=object)
    _check(isinstance(texts, dict), "texts are not digests by split")
    splits = {}
    for split, digest in texts.items():
        _check(split in ("valid", "test") and isinstance(digest, str), "unknown split")
        rows = split_N == split
        _check(bool(rows.any()), f"no documents of the split {split}")
        splits[split] = SplitAnswers(digest, y[rows], answers_NC[rows])
    _check(sum(len(side.y) for side in splits.values()) == len(split_N) > 0, "no documents, or documents of unknown splits")
    return Predictions(run, target, labels, float(threshold), splits)


def _check(is_sound: bool, problem: str) -> None:
    if not is_sound:
        raise ValueError(problem)


def _check_size(file: pa.parquet.ParquetFile, width: int) -> None:
    """Reject a file that would take gigabytes of memory, however small it is on disk.

    Column metadata would be more precise, but damaged metadata aborts the process in Arrow 26 (`RowGroupMetaData.column`).
    """
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    num_rows = max(file.metadata.num_rows, sum(group.num_rows for group in groups))
    _check(0 <= num_rows * width <= MOST_VALUES, "too many rows")
    _check(all(0 <= group.total_byte_size <= 8 * MOST_VALUES for group in groups), "too many bytes")


def _answers(column: pa.ChunkedArray, num_labels: int) -> np.ndarray:
    """Return probabilities [N, C], or numbers [N, 1], float64."""
    if not num_labels:
        answers_NC: np.ndarray = column.cast(pa.float64()).to_numpy()[:, np.newaxis]
        _check(bool(np.isfinite(answers_NC).all()), "NaN or infinite numbers")
        return answers_NC
    lists = column.cast(pa.list_(pa.float64())).combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    _check(bool((lengths == num_labels).all()), f"rows without {num_labels} probabilities")
    flat = lists.flatten()
    _check(flat.null_count == 0, "missing probabilities")
    answers_NC = flat.to_numpy(zero_copy_only=False).reshape(-1, num_labels)
    _check(bool(((answers_NC >= 0) & (answers_NC <= 1)).all()), "probabilities outside 0 to 1")
    return answers_NC


def _targets(column: pa.ChunkedArray, target: str, labels: list[str], delimiter: Any) -> np.ndarray:
    """Return the target of each label, as `SplitAnswers.y`; each distinct label is parsed once."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    names, index_N = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    y: np.ndarray
    if target == "regression":
        values = np.array([float(name) for name in names], dtype=np.float32).astype(np.float64)  # as in training
        _check(all(map(math.isfinite, values.tolist())), "labels are not numbers")
        y = values[index_N]
        return y
    number = {label: i for i, label in enumerate(labels)}
    if target == "category":
        _check(number.keys() >= set(names), "labels outside the classes")
        y = np.array([number[name] for name in names], dtype=np.int64)[index_N]
        return y
    from ulmfit_dist.data.targets import classes_of_label  # imports torch, which only multicategory needs

    _check(isinstance(delimiter, str) and delimiter != "", "label_delim is missing")
    is_true = np.zeros((len(names), len(labels)), dtype=bool)
    for i, name in enumerate(names):
        classes = classes_of_label(name, delimiter)
        _check(number.keys() >= set(classes), "labels outside the classes")
        is_true[i, [number[part] for part in classes]] = True
    y = is_true[index_N]
    return y
