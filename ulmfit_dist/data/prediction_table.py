"""`predictions.parquet` of a run directory: what its classifier answers to each labelled document of valid and test.

Columns: `document` (its index in the token store), `split`, `label`, `predicted` and `probabilities` in the order of the
labels; of a regression `number` instead. The schema's metadata has `labels`, `target`, `threshold`, `label_delim` and
`texts`: for each split a digest of its texts in order. Two runs of equal digests were measured on the same texts, whatever
their tokenizers and training texts were. It holds no text, and no hash of a single text, from which a short one could be
guessed; the trade-off: texts in another order count as others.

A run directory is data that somebody else may have written: sizes are checked before reading, and every value after it.

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
MOST_VALUES = 2**28
"""Probabilities, or rows of a regression, that a file may have."""
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
"""Exceptions that pyarrow, or a check, raises for a damaged file."""


@dataclass(frozen=True)
class SplitAnswers:
    """Answers to the labelled documents of a split, in the order of the token store.

    Attributes:
        texts: digest of the texts.
        y: true classes, int64 [N]; or whether each class is true, bool [N, C]; or true numbers, float64 [N].
        answers: probabilities of the classes, or numbers, float64 [N, C].
    """

    texts: str
    y: np.ndarray
    answers: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """A run's predictions.

    Attributes:
        run: the run directory.
        target: category, multicategory or regression.
        labels: the classes; none for a regression.
        threshold: the probability from which on a document has a class, where it may have several.
        splits: valid and test, those that there are.
    """

    run: Path
    target: str
    labels: list[str]
    threshold: float
    splits: dict[str, SplitAnswers]


def digest_of_texts(hashes_N: np.ndarray) -> str:
    """Return a digest of texts in order, from their hashes, uint64 [N]."""
    return hashlib.blake2b(hashes_N.astype("<u8").tobytes(), digest_size=16).hexdigest()


def encode_metadata(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the schema's metadata: values as JSON."""
    return {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}


def read_predictions(run: Path) -> Predictions:
    """Read the predictions of a run directory.

    Raises:
        UserError: it is none, it has none yet, or they are damaged.
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
    return UserError(f"{run}: no run directory (no {PREDICTIONS} in it): name one, such as runs/quickstart")


def _parse(run: Path, content: bytes) -> Predictions:
    """Raises one of `DAMAGE`, or OSError, for what is not as `write_predictions` writes it."""
    file = pa.parquet.ParquetFile(pa.BufferReader(content))
    metadata = file.schema_arrow.metadata or {}
    missing = [key for key in METADATA if key.encode() not in metadata]
    _check(not missing, f"no {', '.join(missing)} in its metadata")
    labels, target, threshold, delimiter, texts = (json.loads(metadata[key.encode()]) for key in METADATA)
    _check(target in TARGETS, "an unknown target")
    _check(isinstance(threshold, (int, float)) and 0 <= threshold <= 1, "a threshold that is no probability")
    _check(isinstance(labels, list) and all(isinstance(label, str) for label in labels), "labels that are no texts")
    _check(len(set(labels)) == len(labels) and bool(labels) == (target != "regression"), "labels that do not fit its target")
    _check_size(file, max(len(labels), 1))
    answers = "number" if target == "regression" else "probabilities"
    table = file.read(columns=["split", "label", answers])
    _check(not any(column.null_count for column in table.columns), "missing values")
    answers_NC = _answers(table.column(answers), len(labels))
    y = _targets(table.column("label"), target, labels, delimiter)
    split_N = np.array(table.column("split").cast(pa.string()).to_pylist(), dtype=object)
    _check(isinstance(texts, dict), "texts that are no digests by split")
    splits = {}
    for split, digest in texts.items():
        _check(split in ("valid", "test") and isinstance(digest, str), "an unknown split")
        rows = split_N == split
        _check(bool(rows.any()), f"no documents of the split {split}")
        splits[split] = SplitAnswers(digest, y[rows], answers_NC[rows])
    _check(sum(len(side.y) for side in splits.values()) == len(split_N) > 0, "documents of unknown splits, or none")
    return Predictions(run, target, labels, float(threshold), splits)


def _check(is_sound: bool, problem: str) -> None:
    if not is_sound:
        raise ValueError(problem)


def _check_size(file: pa.parquet.ParquetFile, width: int) -> None:
    """Refuse a file that would take gigabytes once it is read, however small it is.

    Metadata of columns would say more, but damaged ones abort the process in Arrow 26 (`RowGroupMetaData.column`).
    """
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    num_rows = max(file.metadata.num_rows, sum(group.num_rows for group in groups))
    _check(0 <= num_rows * width <= MOST_VALUES, "more rows than it could have")
    _check(all(0 <= group.total_byte_size <= 8 * MOST_VALUES for group in groups), "more bytes than it could have")


def _answers(column: pa.ChunkedArray, num_labels: int) -> np.ndarray:
    """Return probabilities [N, C], or numbers [N, 1], float64."""
    if not num_labels:
        answers_NC = column.cast(pa.float64()).to_numpy()[:, np.newaxis]
        _check(bool(np.isfinite(answers_NC).all()), "numbers that are NaN or infinite")
        return answers_NC
    lists = column.cast(pa.list_(pa.float64())).combine_chunks()
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    _check(bool((lengths == num_labels).all()), f"rows that have not {num_labels} probabilities")
    flat = lists.flatten()
    _check(flat.null_count == 0, "missing probabilities")
    answers_NC = flat.to_numpy(zero_copy_only=False).reshape(-1, num_labels)
    _check(bool(((answers_NC >= 0) & (answers_NC <= 1)).all()), "probabilities that are none")
    return answers_NC


def _targets(column: pa.ChunkedArray, target: str, labels: list[str], delimiter: Any) -> np.ndarray:
    """Return what each label stands for, as `SplitAnswers.y`; each different label is read once."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    names, place_N = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    if target == "regression":
        values = np.array([float(name) for name in names], dtype=np.float32).astype(np.float64)  # as it was trained on
        _check(all(map(math.isfinite, values.tolist())), "labels that are no numbers")
        return values[place_N]
    number = {label: i for i, label in enumerate(labels)}
    if target == "category":
        _check(number.keys() >= set(names), "labels that are none of its classes")
        return np.array([number[name] for name in names], dtype=np.int64)[place_N]
    from ulmfit_dist.data.targets import classes_of_label  # it loads torch, which the others need not wait for

    _check(isinstance(delimiter, str) and delimiter != "", "no label_delim")
    is_true = np.zeros((len(names), len(labels)), dtype=bool)
    for i, name in enumerate(names):
        classes = classes_of_label(name, delimiter)
        _check(number.keys() >= set(classes), "labels that are none of its classes")
        is_true[i, [number[part] for part in classes]] = True
    return is_true[place_N]
