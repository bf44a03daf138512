"""What the counts of a classifier's evaluation say: figures of each class, and whether its probabilities can be believed.

All of it follows from sums over documents, which the ranks add up once, so it is equal on any number of them. Where a figure
would be a share of nothing, as the recall of a class that does not occur, it is None and not zero.

C: classes, K: bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

NUM_BINS = 15
"""Bins of equal width that confidences from 0 to 1 fall into."""


class ClassScores(NamedTuple):
    """How well one class is found; `support` is how many documents are of it."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


class ReliabilityBin(NamedTuple):
    """Documents with a confidence (the probability of the predicted class) above `low` and of `high` at most.

    Where confidences can be believed, the mean `confidence` is the share of right predictions, `accuracy`.
    """

    low: float
    high: float
    documents: int
    confidence: float
    accuracy: float


def class_scores(labels: Sequence[str], confusion_CC: np.ndarray) -> list[ClassScores]:
    """Precision, recall, F1 and support of each class.

    Args:
        labels: names of the classes.
        confusion_CC: documents by true class (rows) and predicted class.
    """
    hits_C, support_C, predicted_C = np.diag(confusion_CC), confusion_CC.sum(1), confusion_CC.sum(0)
    columns = (_shares(hits_C, predicted_C), _shares(hits_C, support_C), _shares(2 * hits_C, support_C + predicted_C))
    return [ClassScores(*row) for row in zip(labels, *columns, map(int, support_C.tolist()), strict=True)]


def reliability(bins_K3: np.ndarray) -> list[ReliabilityBin]:
    """The bins that have documents, lowest confidence first: the table behind a reliability diagram.

    Args:
        bins_K3: of each bin: documents, right predictions, and the sum of the confidences.
    """
    edges = [k / len(bins_K3) for k in range(len(bins_K3) + 1)]
    rows = zip(pairwise(edges), bins_K3.tolist(), strict=True)
    return [
        ReliabilityBin(low, high, int(count), confidence / count, correct / count)
        for (low, high), (count, correct, confidence) in rows
        if count
    ]


def expected_calibration_error(bins_K3: np.ndarray) -> float:
    """Mean distance of confidence and accuracy over the bins, each weighed by its documents (Guo et al., 2017, section 2).

    Args:
        bins_K3: as for `reliability`.
    """
    count_K, correct_K, confidence_K = bins_K3.T
    return float(np.abs(correct_K - confidence_K).sum() / count_K.sum())


def _shares(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]
