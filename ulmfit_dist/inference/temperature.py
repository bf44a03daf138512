"""Temperature scaling of probabilities (Guo et al., 2017): one temperature per member of an ensemble.

Logits are divided by the temperature. It does not change the most probable class, only the confidence, so that the most
confident member does not dominate the mean. It is fitted to the validation split, never to test: the negative log likelihood
is convex in the inverse temperature, so its minimum is the root of the derivative, equal on all world sizes to rounding.
Trade-off: epoch and C were chosen on the same split.

N: documents, C: classes.
"""

from __future__ import annotations

import math

from torch import Tensor

from ulmfit_dist.inference.outputs import answers_of, outputs_of

BOUNDS = (0.05, 20.0)
"""Range of the search for a temperature."""
LOG_DEVIATION = 1.0
"""Standard deviation of the prior of a temperature's logarithm, where documents may be few: as strong as about one."""


def fit_temperature(answers_NC: Tensor, y: Tensor, target: str, log_deviation: float | None = None) -> float:
    """Return the temperature that minimizes the negative log likelihood.

    Args:
        answers_NC: probabilities of the classes, float64 [N, C].
        y: true classes, int64 [N], or 1 for each true class, float32 [N, C].
        target: category or multicategory; a regression has no temperature.
        log_deviation: standard deviation of a normal prior around 0 of the temperature's logarithm, which keeps the
            temperature of a few documents that are all classified correctly away from 0; None: no prior.
    """
    from scipy.optimize import brentq  # type: ignore[import-untyped]  # predictions of an ensemble need no scipy

    assert target != "regression"
    logits_NC = outputs_of(answers_NC.cpu(), target)
    y = y.cpu()

    def slope(log_temperature: float) -> float:
        """Return the derivative of the loss by the logarithm of the temperature: its root is found to full precision."""
        inverse = math.exp(-log_temperature)
        p_NC = answers_of(logits_NC * inverse, target)
        if target == "category":
            by_inverse = (p_NC * logits_NC).sum(1) - logits_NC.gather(1, y[:, None])[:, 0]
        else:
            by_inverse = ((p_NC - y) * logits_NC).flatten()
        prior = 0.0 if log_deviation is None else log_temperature / (log_deviation**2 * len(y))
        return prior - inverse * float(by_inverse.mean())

    low, high = (math.log(bound) for bound in BOUNDS)
    if slope(low) >= 0 or slope(high) <= 0:  # lowest at a bound, as where all documents are classified correctly
        return BOUNDS[0] if slope(low) >= 0 else BOUNDS[1]
    return math.exp(brentq(slope, low, high, xtol=1e-13))


def scale_answers(answers_NC: Tensor, temperature: float, target: str) -> Tensor:
    """Return the probabilities, float64 [N, C], scaled by a temperature."""
    assert target != "regression"
    return answers_of(outputs_of(answers_NC, target) / temperature, target)
