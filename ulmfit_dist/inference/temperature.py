"""Temperature scaling of probabilities (Guo et al., 2017): one temperature per member of an ensemble.

Logits are divided by the temperature. It does not change the most probable class, only the confidence, so that the most
confident member does not dominate the mean. It is fitted to the validation split, never to test. Trade-off: epoch and C were
chosen on the same split.

N: documents, C: classes.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from ulmfit_dist.inference.outputs import answers_of, outputs_of

BOUNDS = (0.05, 20.0)
"""Range of the search for a temperature."""


def fit_temperature(answers_NC: Tensor, y: Tensor, target: str) -> float:
    """Return the temperature that minimizes the negative log likelihood.

    Args:
        answers_NC: probabilities of the classes, float64 [N, C].
        y: true classes, int64 [N], or 1 for each true class, float32 [N, C].
        target: category or multicategory; a regression has no temperature.
    """
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]  # predictions of an ensemble need no scipy

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
    """Return the probabilities, float64 [N, C], scaled by a temperature."""
    assert target != "regression"
    return answers_of(outputs_of(answers_NC, target) / temperature, target)
