"""Metrics of a classifier's answers, and of documents drawn from them with replacement.

Several classifiers that answer the same documents are measured on the same draws, so that the difference of two is that of
a pair. A draw is made over what a metric needs and no more: of one class each, the cells of the confusion matrix that have
documents; else the documents themselves. It needs numpy alone: a report does not load torch for it.

N: documents, C: classes, K: what is drawn (cells or documents), R: resamples of a block, M: sums that a metric is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
BLOCK = 100
"""Resamples that are computed at once."""
PERCENTILES = (2.5, 97.5)

Values = dict[str, np.ndarray]
"""Metrics by name, float64 [R]."""


@dataclass(frozen=True)
class Sample:
    """Documents with their answers, to draw from.

    Attributes:
        counts: documents of each thing that is drawn, [K].
        metrics: metrics of each classifier from numbers of draws [R, K].
    """

    counts: np.ndarray
    metrics: Callable[[np.ndarray], list[Values]]

    def exact(self) -> list[dict[str, float]]:
        """Return the metrics of the documents as they are, by classifier."""
        return [
            {name: float(value[0]) for name, value in values.items()} for values in self.metrics(self.counts[np.newaxis])
        ]

    def resampled(self, generator: np.random.Generator) -> list[Values]:
        """Return the metrics of `NUM_RESAMPLES` draws of as many documents, by classifier."""
        blocks = list(self._blocks(generator))
        return [
            {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for parts in zip(*blocks, strict=True)
        ]

    def _blocks(self, generator: np.random.Generator) -> Iterator[list[Values]]:
        num_documents = int(self.counts.sum())
        for _ in range(NUM_RESAMPLES // BLOCK):
            yield self.metrics(generator.multinomial(num_documents, self.counts / num_documents, size=BLOCK))


def interval(values_R: np.ndarray) -> list[float]:
    """Return the middle 95 % of resampled values, lower and upper end."""
    return np.nanpercentile(values_R, PERCENTILES).tolist()


def decide(answers_NC: np.ndarray, target: str, threshold: float) -> np.ndarray:
    """Return the classes that documents are given, int64 [N]; or for each class whether it is, bool [N, C]."""
    return answers_NC.argmax(1) if target == "category" else answers_NC > threshold


def sample_of(answers: Sequence[np.ndarray], y: np.ndarray, target: str, thresholds: Sequence[float]) -> Sample:
    """Return the documents to draw from.

    Args:
        answers: of each classifier, probabilities of the classes, or numbers, float64 [N, C] or [N, 1].
        y: true classes, int64 [N]; or whether each class is true, bool [N, C]; or true numbers, float64 [N].
        target: category, multicategory or regression.
        thresholds: of each classifier, the probability from which on a document has a class; of several classes only.
    """
    if target == "regression":
        return _sums_sample([_regression_sums(answers_N1[:, 0], y) for answers_N1 in answers], _regression_metrics)
    said = [decide(answers_NC, target, threshold) for answers_NC, threshold in zip(answers, thresholds, strict=True)]
    if target == "category":
        return _cells_sample(y, said, answers[0].shape[1])
    return _sums_sample([_multicategory_sums(said_NC, y.astype(bool)) for said_NC in said], _multicategory_metrics)


def _cells_sample(true_N: np.ndarray, said: Sequence[np.ndarray], num_classes: int) -> Sample:
    """Accuracy and macro-F1, by the combinations of true and predicted classes that have documents."""
    cells_KS, counts_K = np.unique(np.stack([true_N, *said], axis=1), axis=0, return_counts=True)
    true_K, *said_by_cell = cells_KS.T

    def metrics(drawn_RK: np.ndarray) -> list[Values]:
        return [_category_metrics(drawn_RK, true_K, said_K, num_classes) for said_K in said_by_cell]

    return Sample(counts_K, metrics)


def _category_metrics(drawn_RK: np.ndarray, true_K: np.ndarray, said_K: np.ndarray, num_classes: int) -> Values:
    hits_RC = _by_class(np.where(true_K == said_K, drawn_RK, 0), true_K, num_classes)
    true_RC, said_RC = _by_class(drawn_RK, true_K, num_classes), _by_class(drawn_RK, said_K, num_classes)
    return {"accuracy": hits_RC.sum(1) / drawn_RK.sum(1), "f1_macro": _f1_macro(hits_RC, true_RC, said_RC)}


def _by_class(drawn_RK: np.ndarray, class_K: np.ndarray, num_classes: int) -> np.ndarray:
    """Sums of cells over each class, [R, C]."""
    sums_RC = np.zeros((len(drawn_RK), num_classes))
    order = np.argsort(class_K, kind="stable")
    classes, begins = np.unique(class_K[order], return_index=True)
    sums_RC[:, classes] = np.add.reduceat(drawn_RK[:, order], begins, axis=1)
    return sums_RC


def _f1_macro(hits_RC: np.ndarray, true_RC: np.ndarray, said_RC: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that occur or are predicted."""
    total_RC = true_RC + said_RC
    occurs_RC = total_RC > 0
    f1_RC = np.divide(2 * hits_RC, total_RC, out=np.zeros_like(total_RC), where=occurs_RC)
    return f1_RC.sum(1) / np.maximum(occurs_RC.sum(1), 1)


def _sums_sample(sums: Sequence[np.ndarray], metrics: Callable[[np.ndarray], Values]) -> Sample:
    """Metrics from the means of what each document adds, [N, M] of each classifier."""
    num_documents = len(sums[0])

    def of_draws(drawn_RN: np.ndarray) -> list[Values]:
        return [metrics(drawn_RN @ sums_NM / num_documents) for sums_NM in sums]

    return Sample(np.ones(num_documents), of_draws)


def _multicategory_sums(said_NC: np.ndarray, true_NC: np.ndarray) -> np.ndarray:
    right_NC = said_NC == true_NC
    right_N1, exact_N1 = right_NC.mean(1, keepdims=True), right_NC.all(1, keepdims=True)
    return np.concatenate([right_N1, exact_N1, said_NC & true_NC, said_NC, true_NC], axis=1, dtype=np.float64)


def _multicategory_metrics(means_RM: np.ndarray) -> Values:
    hits_RC, said_RC, true_RC = np.split(means_RM[:, 2:], 3, axis=1)
    micro = 2 * hits_RC.sum(1) / np.maximum(said_RC.sum(1) + true_RC.sum(1), np.finfo(float).tiny)
    return {
        "accuracy": means_RM[:, 0],
        "f1_macro": _f1_macro(hits_RC, true_RC, said_RC),
        "f1_micro": micro,
        "exact_match": means_RM[:, 1],
    }


def _regression_sums(said_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    error_N = said_N - y_N
    return np.stack([error_N**2, np.abs(error_N), y_N, y_N**2], axis=1).astype(np.float64)


def _regression_metrics(means_R4: np.ndarray) -> Values:
    squared, absolute, total, total_squared = means_R4.T
    spread = total_squared - total**2
    r2 = 1 - np.divide(squared, spread, out=np.full_like(squared, np.nan), where=spread > 0)
    return {"rmse": np.sqrt(squared), "mae": absolute, "r2": r2}
