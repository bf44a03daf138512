"""Two classifiers on the same documents: the difference of each metric, and whether it may be chance.

A pair cancels what is hard or easy about the documents, so its interval is narrower than that of two figures side by side.
It says how the difference of these two models would vary with other documents of the same kind, not with another seed of the
training. All of it depends on the answers alone: the draws are seeded by the number of documents.

N: documents, C: classes, R: resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ulmfit_dist.metrics.resampling import decide, interval, sample_of

TESTED = {"category": "accuracy", "multicategory": "exact_match", "regression": "mae"}
"""The metric that the test of each kind of target is about."""
LOWER_IS_BETTER = ("rmse", "mae")
MCNEMAR, WILCOXON = "McNemar's exact test", "Wilcoxon signed-rank test of the absolute errors"


class Difference(NamedTuple):
    """A metric of both, the second one's minus the first one's, and its 95 % interval."""

    first: float
    second: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """A two-sided test that both are equally good.

    Attributes:
        name: `MCNEMAR` or `WILCOXON`.
        first_better, second_better: documents on which one is right and the other is not, or is nearer.
        p: probability of a difference as large as this one, or larger, between equals.
    """

    name: str
    first_better: int
    second_better: int
    p: float


@dataclass(frozen=True)
class PairedFigures:
    """All figures of a pair: `differences` by metric, and the test of the metric `tested`."""

    num_documents: int
    differences: dict[str, Difference]
    tested: str
    test: PairedTest


def compare_answers(
    first_NC: np.ndarray,
    second_NC: np.ndarray,
    y: np.ndarray,
    target: Literal["category", "multicategory", "regression"] | str,
    thresholds: tuple[float, float] = (0.5, 0.5),
) -> PairedFigures:
    """Compare the answers of two classifiers to the same documents.

    Args:
        first_NC, second_NC: probabilities of the classes, or numbers, float64 [N, C] or [N, 1].
        y: true classes, int64 [N]; or whether each class is true, bool [N, C]; or true numbers, float64 [N].
        target: category, multicategory or regression.
        thresholds: as for `sample_of`.
    """
    sample = sample_of([first_NC, second_NC], y, target, thresholds)
    first, second = sample.exact()
    first_R, second_R = sample.resampled(np.random.Generator(np.random.Philox(key=len(y))))
    differences = {
        name: Difference(first[name], second[name], second[name] - first[name], *interval(second_R[name] - first_R[name]))
        for name in first
    }
    test = (
        _wilcoxon(first_NC, second_NC, y) if target == "regression" else _mcnemar(first_NC, second_NC, y, target, thresholds)
    )
    return PairedFigures(len(y), differences, TESTED[target], test)


def _mcnemar(
    first_NC: np.ndarray, second_NC: np.ndarray, y: np.ndarray, target: str, thresholds: tuple[float, float]
) -> PairedTest:
    """McNemar (1947), exact: of the documents on which one alone is right, each is either's with probability 1/2."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # a second, which a report of one run need not wait

    first_N, second_N = (
        _is_right(answers_NC, y, target, threshold)
        for answers_NC, threshold in zip((first_NC, second_NC), thresholds, strict=True)
    )
    first_only, second_only = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    discordant = first_only + second_only
    return PairedTest(MCNEMAR, first_only, second_only, binomtest(first_only, discordant).pvalue if discordant else 1.0)


def _is_right(answers_NC: np.ndarray, y: np.ndarray, target: str, threshold: float) -> np.ndarray:
    """Return whether a document has its class, or exactly its classes, bool [N]."""
    is_right = decide(answers_NC, target, threshold) == y
    return is_right if target == "category" else is_right.all(1)


def _wilcoxon(first_N1: np.ndarray, second_N1: np.ndarray, y_N: np.ndarray) -> PairedTest:
    """Wilcoxon (1945); documents with equal errors are left out."""
    from scipy.stats import wilcoxon

    gain_N = np.abs(first_N1[:, 0] - y_N) - np.abs(second_N1[:, 0] - y_N)
    first_better, second_better = int((gain_N < 0).sum()), int((gain_N > 0).sum())
    p = float(wilcoxon(gain_N).pvalue) if first_better + second_better else 1.0
    return PairedTest(WILCOXON, first_better, second_better, p)
