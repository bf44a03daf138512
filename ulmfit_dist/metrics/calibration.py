"""Scores per class and calibration of a classifier, from the counts of an evaluation.

The counts are all-reduced sums over documents, so all figures are equal on any number of ranks. Trade-off: undefined scores,
such as the recall of a class without documents, are None instead of zero.

C: classes, K: bins of confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

NUM_BINS = 15
"""Number of confidence bins of equal width from 0 to 1."""


class ClassScores(NamedTuple):
    """Scores of one class; `support` is its number of documents."""

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


class ReliabilityBin(NamedTuple):
    """Documents with a confidence (probability of the predicted class) above `low` and at most `high`.

    For a calibrated classifier, the mean `confidence` equals the `accuracy`.
    """

    low: float
    high: float
    documents: int
    confidence: float
    accuracy: float


def class_scores(labels: Sequence[str], confusion_CC: np.ndarray) -> list[ClassScores]:
    """Return precision, recall, F1 and support of each class.

    Args:
        labels: names of the classes.
        confusion_CC: documents by true class (rows) and predicted class.
    """
    hits_C, support_C, predicted_C = np.diag(confusion_CC), confusion_CC.sum(1), confusion_CC.sum(0)
    columns = (_shares(hits_C, predicted_C), _shares(hits_C, support_C), _shares(2 * hits_C, support_C + predicted_C))
    return [ClassScores(*row) for row in zip(labels, *columns, map(int, support_C.tolist()), strict=True)]


def reliability(bins_K3: np.ndarray) -> list[ReliabilityBin]:
    """Return the non-empty bins, lowest confidence first: the table of a reliability diagram.

    Args:
        bins_K3: documents, correct predictions and sum of the confidences of each bin, float64 [K, 3].
    """
    edges = [k / len(bins_K3) for k in range(len(bins_K3) + 1)]
    rows = zip(pairwise(edges), bins_K3.tolist(), strict=True)
    return [
        ReliabilityBin(low, high, int(count), confidence / count, correct / count)
        for (low, high), (count, correct, confidence) in rows
        if count
    ]


def expected_calibration_error(bins_K3: np.ndarray) -> float:
    """Return the mean distance of confidence and accuracy, weighted by the documents of a bin (Guo et al., 2017, section 2).

    Args:
        bins_K3: as for `reliability`.
    """
    count_K, correct_K, confidence_K = bins_K3.T
    return float(np.abs(correct_K - confidence_K).sum() / count_K.sum())


def _shares(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    return [part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)]
