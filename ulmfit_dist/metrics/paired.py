"""Paired comparison of two classifiers on the same documents: the difference of each metric, and its significance.

Pairing removes the variance of the documents' difficulty, so the interval of the difference is narrower than those of two
separate figures. Trade-off: it covers the choice of documents, not the training seed. The result depends only on the
answers: the draws are seeded by the number of documents.

N: documents, C: classes, R: resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ulmfit_dist.metrics.resampling import decide, interval, sample_of

TESTED = {"category": "accuracy", "multicategory": "exact_match", "regression": "mae"}
"""Metric of the significance test, by target."""
LOWER_IS_BETTER = ("rmse", "mae")
MCNEMAR, WILCOXON = "McNemar's exact test", "Wilcoxon signed-rank test of the absolute errors"


class Difference(NamedTuple):
    """Metric of both classifiers, the difference second minus first, and its 95 % interval."""

    first: float
    second: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """Two-sided significance test of the null hypothesis that both classifiers are equally good.

    Attributes:
        name: `MCNEMAR` or `WILCOXON`.
        first_better, second_better: documents on which only this classifier is correct, or its error is smaller.
        p: p value.
    """

    name: str
    first_better: int
    second_better: int
    p: float


@dataclass(frozen=True)
class PairedFigures:
    """Figures of a pair: `differences` by metric, and the test of the metric `tested`."""

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
        first_NC, second_NC: probabilities of the classes, float64 [N, C], or predicted numbers, float64 [N, 1].
        y: true classes, int64 [N], or bool [N, C] for several per document; or true numbers, float64 [N].
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
    """McNemar's exact test (1947): binomial test of the documents on which only one classifier is correct."""
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # slow import, not needed for a report of one run

    first_N, second_N = (
        _is_right(answers_NC, y, target, threshold)
        for answers_NC, threshold in zip((first_NC, second_NC), thresholds, strict=True)
    )
    first_only, second_only = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    discordant = first_only + second_only
    return PairedTest(MCNEMAR, first_only, second_only, binomtest(first_only, discordant).pvalue if discordant else 1.0)


def _is_right(answers_NC: np.ndarray, y: np.ndarray, target: str, threshold: float) -> np.ndarray:
    """Return True for documents with the correct class, or exactly the correct classes, bool [N]."""
    is_right: np.ndarray = decide(answers_NC, target, threshold) == y
    return is_right if target == "category" else np.asarray(is_right.all(1))


def _wilcoxon(first_N1: np.ndarray, second_N1: np.ndarray, y_N: np.ndarray) -> PairedTest:
    """Wilcoxon's signed-rank test (1945); documents with equal errors are excluded."""
    from scipy.stats import wilcoxon

    gain_N = np.abs(first_N1[:, 0] - y_N) - np.abs(second_N1[:, 0] - y_N)
    first_better, second_better = int((gain_N < 0).sum()), int((gain_N > 0).sum())
    p = float(wilcoxon(gain_N).pvalue) if first_better + second_better else 1.0
    return PairedTest(WILCOXON, first_better, second_better, p)
