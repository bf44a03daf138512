"""95 % intervals of a classifier's metrics: a bootstrap over documents (Efron & Tibshirani, 1993, chapter 13).

Documents are drawn with replacement `NUM_RESAMPLES` times, and the metric is computed on each draw; the interval contains
the middle 95 % of the values. The draws depend only on the seed and the number of documents, so the interval is equal on
any number of ranks. Trade-off: the interval covers the choice of documents, not the training seed.

N: documents, C: classes.
"""

from __future__ import annotations

import numpy as np

from ulmfit_dist.config.schema import ClassifierConfig
from ulmfit_dist.metrics.resampling import interval, sample_of
from ulmfit_dist.rng.counter_based import derive_seed

Interval = list[float]
"""Lower and upper end."""


def metric_intervals(answers_NC: np.ndarray, y: np.ndarray, settings: ClassifierConfig, seed: int) -> dict[str, Interval]:
    """Return the interval of each metric, by its name.

    Args:
        answers_NC: probabilities of the classes, float64 [N, C], or predicted numbers, float64 [N, 1].
        y: true classes, int64 [N], or bool [N, C] for several per document; or true numbers, float64 [N].
        settings: target, and probability threshold of a class.
        seed: seed of the draws.
    """
    sample = sample_of([answers_NC], y, settings.target, [settings.threshold])
    generator = np.random.Generator(np.random.Philox(key=derive_seed(seed, "bootstrap", len(y))))
    (values,) = sample.resampled(generator)
    return {name: interval(values_R) for name, values_R in values.items()}
