"""Loss and metrics of a classifier, by its kind of targets.

The losses are fastai's for `CategoryBlock`, `MultiCategoryBlock` and `RegressionBlock`: means over documents, or over
documents and classes. Trade-off: one fixed loss per kind of targets, where fastai accepts any.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit_dist.config.schema import ClassifierConfig
from ulmfit_dist.data.targets import Targets
from ulmfit_dist.metrics.accumulators import ClassifierMetrics
from ulmfit_dist.metrics.targets import MulticategoryMetrics, RegressionMetrics
from ulmfit_dist.metrics.user import build_metrics
from ulmfit_dist.models.classifier_loss import build_loss

Loss = Callable[[Tensor, Tensor], Tensor]
TargetMetrics = ClassifierMetrics | MulticategoryMetrics | RegressionMetrics


def build_objective_loss(settings: ClassifierConfig, targets: Targets, labels: np.ndarray) -> Loss:
    """Return the loss function of outputs [b, outputs] and targets.

    Args:
        labels: labels of the training documents, by index in the store.

    Raises:
        UserError: the number of class weights is not the number of classes.
    """
    if targets.kind == "category":
        return build_loss(settings, labels, targets.names)
    return squared_error if targets.kind == "regression" else binary_cross_entropy


def build_objective_metrics(targets: Targets, settings: ClassifierConfig, trust: bool = True) -> TargetMetrics:
    """Return the metrics of a validation.

    Args:
        trust: compute also the user-defined metrics of `classifier.metrics`.

    Raises:
        UserError: an entry of `classifier.metrics` is invalid or fails.
    """
    user_metrics = build_metrics(settings.metrics if trust else [], *sample_answers(targets))
    if targets.kind == "multicategory":
        return MulticategoryMetrics(len(targets.names), settings.threshold, user_metrics)
    if targets.kind == "regression":
        return RegressionMetrics(user_metrics)
    return ClassifierMetrics(len(targets.names), user_metrics)


def sample_answers(targets: Targets) -> tuple[Tensor, Tensor]:
    """Return sample outputs [N, outputs] and targets, to test metrics on."""
    if targets.kind == "regression":
        y_N = torch.arange(4.0)
        return y_N[:, None].flip(0), y_N
    classes = torch.arange(len(targets.names))
    y_N, predicted_N = classes.repeat(2), torch.cat([classes, classes.roll(-1)])
    outputs_NC = F.one_hot(predicted_N, len(classes)).float()
    return outputs_NC, F.one_hot(y_N, len(classes)).float() if targets.kind == "multicategory" else y_N


def binary_cross_entropy(logits_bC: Tensor, y_bC: Tensor) -> Tensor:
    """Return the mean over documents and classes, in the dtype of the logits; torch would use that of the targets."""
    return F.binary_cross_entropy_with_logits(logits_bC, y_bC.to(logits_bC.dtype))


def squared_error(prediction_b1: Tensor, y_b: Tensor) -> Tensor:
    """Return the mean over documents, in the dtype of the prediction."""
    return F.mse_loss(prediction_b1[:, 0], y_b.to(prediction_b1.dtype))
