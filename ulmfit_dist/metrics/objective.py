"""What a classifier is trained for, and measured by: the loss and the metrics of its kind of targets.

The losses are fastai's for `CategoryBlock`, `MultiCategoryBlock` and `RegressionBlock`: means over documents, or over
documents and classes.
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
    """Mean loss from what the network gives, [b, outputs], and the targets.

    Args:
        labels: of the training documents, by index in the store.

    Raises:
        UserError: as many class weights as there are no classes.
    """
    if targets.kind == "category":
        return build_loss(settings, labels, targets.names)
    return squared_error if targets.kind == "regression" else binary_cross_entropy


def build_objective_metrics(targets: Targets, settings: ClassifierConfig, trust: bool = True) -> TargetMetrics:
    """What a validation adds up.

    Args:
        trust: whether to compute those of `classifier.metrics` beside it, which are not this package's.

    Raises:
        UserError: one of those is none, or fails.
    """
    own = build_metrics(settings.metrics if trust else [], *made_up_answers(targets))
    if targets.kind == "multicategory":
        return MulticategoryMetrics(len(targets.names), settings.threshold, own)
    return RegressionMetrics(own) if targets.kind == "regression" else ClassifierMetrics(len(targets.names), own)


def made_up_answers(targets: Targets) -> tuple[Tensor, Tensor]:
    """What a network could give for some documents, [N, outputs], and what is true of them: for metrics to be tried on."""
    if targets.kind == "regression":
        y_N = torch.arange(4.0)
        return y_N[:, None].flip(0), y_N
    classes = torch.arange(len(targets.names))
    y_N, said_N = classes.repeat(2), torch.cat([classes, classes.roll(-1)])
    outputs_NC = F.one_hot(said_N, len(classes)).float()
    return outputs_NC, F.one_hot(y_N, len(classes)).float() if targets.kind == "multicategory" else y_N


def binary_cross_entropy(logits_bC: Tensor, y_bC: Tensor) -> Tensor:
    """Mean over documents and classes, in the type of the logits: torch's own would be that of the targets."""
    return F.binary_cross_entropy_with_logits(logits_bC, y_bC.to(logits_bC.dtype))


def squared_error(prediction_b1: Tensor, y_b: Tensor) -> Tensor:
    """Mean over documents, in the type of the prediction."""
    return F.mse_loss(prediction_b1[:, 0], y_b.to(prediction_b1.dtype))
