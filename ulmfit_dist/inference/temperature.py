"""Temperature scaling of probabilities (Guo et al., 2017): one number per member of an ensemble, fitted to valid.

Logits are divided by the temperature. It does not change which class is the most probable, only how sure a member is, so
that the mean of several is not that of the surest one. It is fitted to valid, by which the epoch and C were chosen, never to
test.

N: documents, C: classes.
"""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ulmfit_dist.inference.outputs import answers_of, outputs_of

BOUNDS = (0.05, 20.0)
"""Temperatures that are searched."""


def fit_temperature(answers_NC: Tensor, y: Tensor, target: str) -> float:
    """Return the temperature that minimizes the negative log likelihood.

    Args:
        answers_NC: probabilities of the classes, float64 [N, C].
        y: true classes, int64 [N], or whether each class is true, float32 [N, C].
        target: category or multicategory: a number has no temperature.
    """
    assert target != "regression"
    logits_NC = outputs_of(answers_NC.cpu(), target)
    y = y.cpu()

    def loss(log_temperature: float) -> float:
        scaled_NC = logits_NC / math.exp(log_temperature)
        if target == "category":
            return float(cross_entropy(scaled_NC, y))
        return float(binary_cross_entropy_with_logits(scaled_NC, y.double()))

    bounds = tuple(math.log(bound) for bound in BOUNDS)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5}).x)


def scale_answers(answers_NC: Tensor, temperature: float, target: str) -> Tensor:
    """Return probabilities, float64 [N, C], at a temperature."""
    assert target != "regression"
    return answers_of(outputs_of(answers_NC, target) / temperature, target)
