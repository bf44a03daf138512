"""95 % intervals of a classifier's metrics: a bootstrap over documents (Efron & Tibshirani, 1993, chapter 13).

Documents are drawn with replacement `NUM_RESAMPLES` times, and the metric computed of each draw; the interval holds the
middle 95 % of the values. The draws depend on the seed and the number of documents alone, so any number of ranks finds the
same interval. It says how much a figure would vary with other documents of the same kind, not with another seed of the
training.

N: documents, C: classes, R: resamples of a block, M: sums over documents that a metric is made from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ulmfit_dist.config import ClassifierConfig
from ulmfit_dist.randomness import derive_seed

NUM_RESAMPLES = 2000
BLOCK = 100
"""Resamples that are computed at once."""
PERCENTILES = (2.5, 97.5)

Interval = list[float]
"""Lower and upper end."""


def metric_intervals(answers_NC: np.ndarray, y: np.ndarray, settings: ClassifierConfig, seed: int) -> dict[str, Interval]:
    """Return the interval of each metric, by its name.

    Args:
        answers_NC: probabilities of the classes of each document, or its number, float64 [N, C] or [N, 1].
        y: true classes, int64 [N]; or whether each class is true, bool [N, C]; or true numbers, float64 [N].
        settings: the kind of target, and the probability from which on a document has a class.
        seed: of the draws.
    """
    if settings.target == "category":
        return _intervals(_resampled_cells(y, answers_NC.argmax(1), answers_NC.shape[1], seed))
    if settings.target == "multicategory":
        said_NC, true_NC = answers_NC > settings.threshold, y.astype(bool)
        right_N1 = (said_NC == true_NC).mean(1, keepdims=True)
        sums_NM = np.concatenate([right_N1, said_NC & true_NC, said_NC, true_NC], axis=1, dtype=np.float64)
        return _intervals(_resampled_sums(sums_NM, seed, _multicategory_metrics))
    error_N = answers_NC[:, 0] - y
    sums_NM = np.stack([error_N**2, np.abs(error_N), y, y**2], axis=1).astype(np.float64)
    return _intervals(_resampled_sums(sums_NM, seed, _regression_metrics))


def _intervals(blocks: Iterator[dict[str, np.ndarray]]) -> dict[str, Interval]:
    values: dict[str, list[np.ndarray]] = {}
    for block in blocks:
        for name, part in block.items():
            values.setdefault(name, []).append(part)
    return {name: np.nanpercentile(np.concatenate(parts), PERCENTILES).tolist() for name, parts in values.items()}


def _generator(seed: int, num_documents: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=derive_seed(seed, "bootstrap", num_documents)))


def _resampled_cells(true_N: np.ndarray, said_N: np.ndarray, num_classes: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Accuracy and macro-F1 of resamples, by the cells of the confusion matrix that have documents: no metric needs more."""
    cells_K, counts_K = np.unique(true_N * num_classes + said_N, return_counts=True)
    true_K, said_K = np.divmod(cells_K, num_classes)
    generator = _generator(seed, len(true_N))
    for _ in range(NUM_RESAMPLES // BLOCK):
        drawn_RK = generator.multinomial(len(true_N), counts_K / len(true_N), size=BLOCK)
        hits_RC = _by_class(np.where(true_K == said_K, drawn_RK, 0), true_K, num_classes)
        true_RC, said_RC = _by_class(drawn_RK, true_K, num_classes), _by_class(drawn_RK, said_K, num_classes)
        yield {"accuracy": hits_RC.sum(1) / len(true_N), "f1_macro": _f1_macro(hits_RC, true_RC, said_RC)}


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


def _resampled_sums(
    sums_NM: np.ndarray, seed: int, metrics: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> Iterator[dict[str, np.ndarray]]:
    """Metrics of resamples, from the means of what each document adds."""
    num_documents = len(sums_NM)
    generator = _generator(seed, num_documents)
    for _ in range(NUM_RESAMPLES // BLOCK):
        drawn_RN = generator.multinomial(num_documents, np.full(num_documents, 1 / num_documents), size=BLOCK)
        yield metrics(drawn_RN @ sums_NM / num_documents)


def _multicategory_metrics(means_RM: np.ndarray) -> dict[str, np.ndarray]:
    hits_RC, said_RC, true_RC = np.split(means_RM[:, 1:], 3, axis=1)
    micro = 2 * hits_RC.sum(1) / np.maximum(said_RC.sum(1) + true_RC.sum(1), np.finfo(float).tiny)
    return {"accuracy": means_RM[:, 0], "f1_macro": _f1_macro(hits_RC, true_RC, said_RC), "f1_micro": micro}


def _regression_metrics(means_R4: np.ndarray) -> dict[str, np.ndarray]:
    squared, absolute, total, total_squared = means_R4.T
    spread = total_squared - total**2
    r2 = 1 - np.divide(squared, spread, out=np.full_like(squared, np.nan), where=spread > 0)
    return {"rmse": np.sqrt(squared), "mae": absolute, "r2": r2}
