"""Bootstrap of a classifier's metrics over documents.

Several classifiers are evaluated on the same draws, so differences are paired. With one class per document, non-empty cells
of the confusion matrix are drawn instead of documents, which is faster and equivalent. Trade-off: metrics are implemented
here a second time, vectorized over resamples in numpy, so that a report does not load torch.

N: documents, C: classes, K: drawn items (cells or documents), R: resamples of a block, M: sums that a metric is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
"""Number of bootstrap resamples."""
BLOCK = 100
"""Number of resamples that are computed at once."""
PERCENTILES = (2.5, 97.5)
"""Ends of the interval, in percent."""

Values = dict[str, np.ndarray]
"""Metrics by name, float64 [R]."""


@dataclass(frozen=True)
class Sample:
    """Documents and answers to resample.

    Attributes:
        counts: documents of each drawn item, [K].
        metrics: function from counts of drawn items [R, K] to the metrics of each classifier.
    """

    counts: np.ndarray
    metrics: Callable[[np.ndarray], list[Values]]

    def exact(self) -> list[dict[str, float]]:
        """Return the metrics of the original documents, by classifier."""
        return [
            {name: float(value[0]) for name, value in values.items()} for values in self.metrics(self.counts[np.newaxis])
        ]

    def resampled(self, generator: np.random.Generator) -> list[Values]:
        """Return the metrics of `NUM_RESAMPLES` resamples, by classifier."""
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
    """Return the lower and upper end of the middle 95 % of resampled values."""
    ends: list[float] = np.nanpercentile(values_R, PERCENTILES).tolist()
    return ends


def decide(answers_NC: np.ndarray, target: str, threshold: float) -> np.ndarray:
    """Return the predicted classes, int64 [N], or bool [N, C] for several per document."""
    return answers_NC.argmax(1) if target == "category" else answers_NC > threshold


def sample_of(answers: Sequence[np.ndarray], y: np.ndarray, target: str, thresholds: Sequence[float]) -> Sample:
    """Return the documents to resample.

    Args:
        answers: for each classifier, probabilities, float64 [N, C], or predicted numbers, float64 [N, 1].
        y: true classes, int64 [N], or bool [N, C] for several per document; or true numbers, float64 [N].
        target: category, multicategory or regression.
        thresholds: for each classifier, the probability threshold of a class; used only for multicategory.
    """
    if target == "regression":
        return _sums_sample([_regression_sums(answers_N1[:, 0], y) for answers_N1 in answers], _regression_metrics)
    predictions = [decide(answers_NC, target, threshold) for answers_NC, threshold in zip(answers, thresholds, strict=True)]
    if target == "category":
        return _cells_sample(y, predictions, answers[0].shape[1])
    return _sums_sample(
        [_multicategory_sums(predicted_NC, y.astype(bool)) for predicted_NC in predictions], _multicategory_metrics
    )


def _cells_sample(true_N: np.ndarray, predictions: Sequence[np.ndarray], num_classes: int) -> Sample:
    """Return a sample of the non-empty combinations of true and predicted classes, for accuracy and macro-F1."""
    cells_KS, counts_K = np.unique(np.stack([true_N, *predictions], axis=1), axis=0, return_counts=True)
    true_K, *predicted_by_cell = cells_KS.T

    def metrics(drawn_RK: np.ndarray) -> list[Values]:
        return [_category_metrics(drawn_RK, true_K, predicted_K, num_classes) for predicted_K in predicted_by_cell]

    return Sample(counts_K, metrics)


def _category_metrics(drawn_RK: np.ndarray, true_K: np.ndarray, predicted_K: np.ndarray, num_classes: int) -> Values:
    hits_RC = _by_class(np.where(true_K == predicted_K, drawn_RK, 0), true_K, num_classes)
    true_RC, predicted_RC = _by_class(drawn_RK, true_K, num_classes), _by_class(drawn_RK, predicted_K, num_classes)
    return {"accuracy": hits_RC.sum(1) / drawn_RK.sum(1), "f1_macro": _f1_macro(hits_RC, true_RC, predicted_RC)}


def _by_class(drawn_RK: np.ndarray, class_K: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the sums of cells by class, [R, C]."""
    sums_RC = np.zeros((len(drawn_RK), num_classes))
    order = np.argsort(class_K, kind="stable")
    classes, begins = np.unique(class_K[order], return_index=True)
    sums_RC[:, classes] = np.add.reduceat(drawn_RK[:, order], begins, axis=1)
    return sums_RC


def _f1_macro(hits_RC: np.ndarray, true_RC: np.ndarray, predicted_RC: np.ndarray) -> np.ndarray:
    """Return the mean F1 of the classes that occur or are predicted, [R]."""
    total_RC = true_RC + predicted_RC
    occurs_RC = total_RC > 0
    f1_RC = np.divide(2 * hits_RC, total_RC, out=np.zeros_like(total_RC), where=occurs_RC)
    mean_R: np.ndarray = f1_RC.sum(1) / np.maximum(occurs_RC.sum(1), 1)
    return mean_R


def _sums_sample(sums: Sequence[np.ndarray], metrics: Callable[[np.ndarray], Values]) -> Sample:
    """Return a sample of documents, with metrics of the means of their summands [N, M] for each classifier."""
    num_documents = len(sums[0])

    def of_draws(drawn_RN: np.ndarray) -> list[Values]:
        return [metrics(drawn_RN @ sums_NM / num_documents) for sums_NM in sums]

    return Sample(np.ones(num_documents), of_draws)


def _multicategory_sums(predicted_NC: np.ndarray, true_NC: np.ndarray) -> np.ndarray:
    correct_NC = predicted_NC == true_NC
    correct_N1, exact_N1 = correct_NC.mean(1, keepdims=True), correct_NC.all(1, keepdims=True)
    return np.concatenate([correct_N1, exact_N1, predicted_NC & true_NC, predicted_NC, true_NC], axis=1, dtype=np.float64)


def _multicategory_metrics(means_RM: np.ndarray) -> Values:
    hits_RC, predicted_RC, true_RC = np.split(means_RM[:, 2:], 3, axis=1)
    micro = 2 * hits_RC.sum(1) / np.maximum(predicted_RC.sum(1) + true_RC.sum(1), np.finfo(float).tiny)
    return {
        "accuracy": means_RM[:, 0],
        "f1_macro": _f1_macro(hits_RC, true_RC, predicted_RC),
        "f1_micro": micro,
        "exact_match": means_RM[:, 1],
    }


def _regression_sums(predicted_N: np.ndarray, y_N: np.ndarray) -> np.ndarray:
    error_N = predicted_N - y_N
    return np.stack([error_N**2, np.abs(error_N), y_N, y_N**2], axis=1).astype(np.float64)


def _regression_metrics(means_R4: np.ndarray) -> Values:
    squared, absolute, total, total_squared = means_R4.T
    spread = total_squared - total**2
    r2 = 1 - np.divide(squared, spread, out=np.full_like(squared, np.nan), where=spread > 0)
    return {"rmse": np.sqrt(squared), "mae": absolute, "r2": r2}
