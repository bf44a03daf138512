"""Temperature scaling of probabilities (Guo et al., 2017): one temperature per member of an ensemble.

Logits are divided by the temperature. It does not change the most probable class, only the confidence, so that the most
confident member does not dominate the mean. It is fitted to the validation split, never to test: the negative log likelihood
is convex in the inverse temperature, so its minimum is the root of the derivative, equal on all world sizes to rounding.
Trade-off: epoch and C were chosen on the same split.

N: documents, C: classes.
"""

from __future__ import annotations

from scipy.optimize import brentq  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import one_hot

from ulmfit_dist.inference.outputs import answers_of, outputs_of

BOUNDS = (0.05, 20.0)
"""Range of the search for a temperature."""


def fit_temperature(answers_NC: Tensor, y: Tensor, target: str, smoothing: float = 0.0) -> float:
    """Return the temperature that minimizes the negative log likelihood.

    Args:
        answers_NC: probabilities of the classes, float64 [N, C].
        y: true classes, int64 [N], or 1 for each true class, float32 [N, C].
        target: category or multicategory; a regression has no temperature.
        smoothing: share of the target probability, from 0 to below 1, that is spread over all classes (category only): for
            few documents, on which a model without an error would otherwise get the lowest temperature.
    """
    assert target != "regression"
    logits_NC, y = outputs_of(answers_NC.cpu(), target), y.cpu()
    num_classes = logits_NC.shape[1]
    true_NC = one_hot(y, num_classes) * (1 - smoothing) + smoothing / num_classes if target == "category" else y
    true_NC = true_NC.double()

    def slope(inverse: float) -> float:
        """Return the derivative of the summed negative log likelihood by the inverse temperature."""
        return float(((answers_of(inverse * logits_NC, target) - true_NC) * logits_NC).sum())

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    if slope(low) >= 0:
        return BOUNDS[1]
    if slope(high) <= 0:
        return BOUNDS[0]
    return 1 / float(brentq(slope, low, high, xtol=1e-14, rtol=1e-14))


def scale_answers(answers_NC: Tensor, temperature: float, target: str) -> Tensor:
    """Return the probabilities, float64 [N, C], scaled by a temperature."""
    assert target != "regression"
    return answers_of(outputs_of(answers_NC, target) / temperature, target)
