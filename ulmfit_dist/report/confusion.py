"""Errors of a classifier: confusion matrix, reliability, and the misclassified documents of the highest loss.

Precision, recall and F1 are computed from the matrix, so the page is consistent. Trade-off: an undefined score, such as the
recall of a class without documents, is empty instead of zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ulmfit_dist.metrics.calibration import ClassScores, ReliabilityBin, class_scores
from ulmfit_dist.report.parsing import items, mapping, number, text

MOST_LABELS = 1000
"""Maximum number of classes of a matrix that is read."""
MOST_SHOWN = 100
"""Maximum number of classes for which the matrix is shown."""
FEW = 12
"""Maximum number of classes for which each cell also shows its share."""
MOST_WRONG = 50
"""Maximum number of misclassified documents that are shown."""
MOST_BINS = 100
"""Maximum number of confidence bins that are read."""
SHARES = ("low", "high", "confidence", "accuracy")


class WrongText(NamedTuple):
    """Misclassified document; `probability` is that of the predicted label."""

    document: str
    label: str
    predicted: str
    probability: float | None
    loss: float | None
    text: str


class Mistake(NamedTuple):
    """Number of documents of a label with another predicted label; `share` is relative to all documents of the label."""

    label: str
    predicted: str
    documents: int
    share: float


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix.

    Attributes:
        labels: class names.
        counts: documents by true label (rows) and predicted label (columns), int64 [classes, classes].
    """

    labels: list[str]
    counts: np.ndarray

    @property
    def is_shown(self) -> bool:
        return len(self.labels) <= MOST_SHOWN

    @property
    def is_roomy(self) -> bool:
        return len(self.labels) <= FEW

    @property
    def num_documents(self) -> int:
        return int(self.counts.sum())

    @property
    def num_correct(self) -> int:
        return int(np.trace(self.counts))

    @property
    def rows(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """Rows of the matrix: label, and the count and share of the row for each column."""
        shares = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        pairs = [list(zip(*row, strict=True)) for row in zip(self.counts.tolist(), shares.tolist(), strict=True)]
        return list(zip(self.labels, pairs, strict=True))

    @property
    def classes(self) -> list[ClassScores]:
        return class_scores(self.labels, self.counts)

    @property
    def largest(self) -> list[Mistake]:
        """Most frequent mistakes, in descending order: 5 for small matrices, 12 for others."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        documents = np.maximum(self.counts.sum(axis=1), 1)
        order = np.argsort(-wrong, axis=None, kind="stable")[: 5 if len(self.labels) <= FEW else 12]
        cells = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j] > 0]
        return [
            Mistake(self.labels[i], self.labels[j], int(wrong[i, j]), float(wrong[i, j] / documents[i])) for i, j in cells
        ]


def read_confusion(labels: Any, rows: Any) -> Confusion | None:
    """Return the confusion matrix of tables.json; None if it is not a square matrix of counts with one row per label."""
    names = [text(label) for label in items(labels, MOST_LABELS + 1)]
    if not 1 <= len(names) <= MOST_LABELS or not isinstance(rows, list) or len(rows) != len(names):
        return None
    for row in rows:
        if not isinstance(row, list) or len(row) != len(names) or not all(_is_count(value) for value in row):
            return None
    return Confusion(names, np.array(rows, dtype=np.int64))


def read_most_wrong(rows: Any) -> list[WrongText]:
    """Return the misclassified documents of tables.json, in its order."""
    entries = [mapping(row) for row in items(rows, MOST_WRONG)]
    return [
        WrongText(
            text(row.get("document")),
            text(row.get("label")),
            text(row.get("predicted")),
            number(row.get("probability")),
            number(row.get("loss")),
            text(row.get("text")),
        )
        for row in entries
        if row
    ]


def read_reliability(rows: Any) -> list[ReliabilityBin]:
    """Return the confidence bins of tables.json, without invalid ones."""
    entries = [mapping(row) for row in items(rows, MOST_BINS)]
    return [
        ReliabilityBin(documents=int(row["documents"]), **{name: float(row[name]) for name in SHARES})
        for row in entries
        if _is_count(row.get("documents")) and all(_is_share(row.get(name)) for name in SHARES)
    ]


def _is_share(value: Any) -> bool:
    share = number(value)
    return share is not None and 0 <= share <= 1


def _is_count(value: Any) -> bool:
    count = number(value)
    return count is not None and 0 <= count < 2**40 and count.is_integer()
