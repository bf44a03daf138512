"""What a classifier is trained for, and measured by: the loss and the metrics of its kind of targets.

The losses are fastai's for `CategoryBlock`, `MultiCategoryBlock` and `RegressionBlock`: means over documents, or over
documents and classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ulmfit_dist.config import ClassifierConfig
from ulmfit_dist.data.targets import Targets
from ulmfit_dist.model.classifier_loss import build_loss
from ulmfit_dist.training.metrics import ClassifierMetrics, Metrics
from ulmfit_dist.training.target_metrics import MulticategoryMetrics, RegressionMetrics

Loss = Callable[[Tensor, Tensor], Tensor]


def make_loss(settings: ClassifierConfig, targets: Targets, labels: np.ndarray) -> Loss:
    """Mean loss from what the network gives, [b, outputs], and the targets.

    Args:
        labels: of the training documents, by index in the store.

    Raises:
        UserError: as many class weights as there are no classes.
    """
    if targets.kind == "category":
        return build_loss(settings, labels, targets.names)
    return squared_error if targets.kind == "regression" else F.binary_cross_entropy_with_logits


def make_metrics(targets: Targets, settings: ClassifierConfig) -> Metrics:
    """What a validation adds up."""
    if targets.kind == "multicategory":
        return MulticategoryMetrics(len(targets.names), settings.threshold)
    return RegressionMetrics() if targets.kind == "regression" else ClassifierMetrics(len(targets.names))


def squared_error(prediction_b1: Tensor, y_b: Tensor) -> Tensor:
    """Mean over documents."""
    return F.mse_loss(prediction_b1[:, 0], y_b)
