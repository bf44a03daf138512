"""Metrics of multi-label classification and regression, as sums over documents that are reduced once per evaluation.

Trade-off: as in `accumulators.py`, only metrics that follow from sums are computed here.

b: documents, C: classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.user import UserMetrics


class MulticategoryMetrics:
    """Binary cross-entropy, accuracy over all decisions (fastai's `accuracy_multi`), macro-F1 and micro-F1.

    A decision is one class of one document. The macro-F1 excludes classes that neither occur nor are predicted.

    Args:
        user_metrics: user-defined metrics, computed in addition.

    Attributes:
        hits_C, predicted_C, true_C: true positives, predicted and true documents by class, after `compute`.
    """

    def __init__(self, num_classes: int, threshold: float, user_metrics: UserMetrics | None = None):
        self.num_classes, self.threshold = num_classes, threshold
        self.user_metrics = user_metrics or UserMetrics()

    def score(self, metrics: dict[str, float]) -> float:
        return metrics["f1_macro"]

    def reset(self, device: torch.device) -> None:
        self.user_metrics.reset()
        self.sums_3C = torch.zeros(3, self.num_classes, dtype=torch.float64, device=device)
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, correct decisions, documents

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        self.user_metrics.update(prediction, batch)
        self.add(prediction.double(), batch.y)

    def add(self, logits_bC: Tensor, y_bC: Tensor) -> None:
        """Add documents: logits of the classes (float64), and the true classes as 0 and 1."""
        true_bC = y_bC.double()
        predicted_bC = (logits_bC.sigmoid() > self.threshold).double()
        self.sums_3C += torch.stack([(predicted_bC * true_bC).sum(0), predicted_bC.sum(0), true_bC.sum(0)])
        loss = F.binary_cross_entropy_with_logits(logits_bC, true_bC, reduction="sum")
        correct = (predicted_bC == true_bC).sum().double()
        self.totals += torch.stack([loss, correct, loss.new_full((), len(true_bC))])

    def compute(self, runtime: Runtime) -> dict[str, float]:
        sums = runtime.all_reduce_sum(torch.cat([self.totals, self.sums_3C.flatten()])).cpu()
        loss, correct, documents = sums[:3].tolist()
        self.hits_C, self.predicted_C, self.true_C = sums[3:].view(3, self.num_classes)
        decisions = documents * self.num_classes
        return {
            "valid_loss": loss / decisions,
            "accuracy": correct / decisions,
            "f1_macro": _f1(self.hits_C, self.predicted_C, self.true_C),
            "f1_micro": _f1(*(total[None] for total in (self.hits_C.sum(), self.predicted_C.sum(), self.true_C.sum()))),
            **self.user_metrics.compute(runtime),
        }


class RegressionMetrics:
    """Mean squared error, its root, mean absolute error, and coefficient of determination (R2).

    Args:
        user_metrics: user-defined metrics, computed in addition.
    """

    def __init__(self, user_metrics: UserMetrics | None = None):
        self.user_metrics = user_metrics or UserMetrics()

    def score(self, metrics: dict[str, float]) -> float:
        return -metrics["valid_loss"]

    def reset(self, device: torch.device) -> None:
        self.user_metrics.reset()
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        self.user_metrics.update(prediction, batch)
        self.add(prediction.double(), batch.y)

    def add(self, prediction_b1: Tensor, y_b: Tensor) -> None:
        """Add documents: predicted numbers (float64) and true ones."""
        true_b, predicted_b = y_b.double(), prediction_b1[:, 0]
        error_b = predicted_b - true_b
        columns = (torch.ones_like(true_b), error_b**2, error_b.abs(), true_b, true_b**2)
        self.sums += torch.stack([column.sum() for column in columns])

    def compute(self, runtime: Runtime) -> dict[str, float]:
        count, squared, absolute, total, total_squared = runtime.all_reduce_sum(self.sums).tolist()
        spread = total_squared - total**2 / count
        mse = squared / count
        r2 = 1 - squared / spread if spread > 0 else math.nan
        metrics = {"valid_loss": mse, "rmse": math.sqrt(mse), "mae": absolute / count, "r2": r2}
        return {**metrics, **self.user_metrics.compute(runtime)}


def _f1(hits_C: Tensor, predicted_C: Tensor, true_C: Tensor) -> float:
    """Return the mean F1 of the classes that occur or are predicted; 0 if there are none."""
    total_C = predicted_C + true_C
    occurs_C = total_C > 0
    return (2 * hits_C / total_C)[occurs_C].mean().item() if occurs_C.any() else 0.0
