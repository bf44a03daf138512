"""Metrics of classifiers that say several classes of a document, or a number: sums over documents, reduced once.

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
    """Binary cross-entropy, share of right decisions (fastai's `accuracy_multi`) and F1 by class and over all decisions.

    A decision is on one class of one document. A class has no part in the macro-F1 where no document has it or is said to.

    Args:
        own: metrics of the user's beside these.

    Attributes:
        hits_C, said_C, true_C: documents rightly said to have a class, said to, and that have it; after `compute`.
    """

    def __init__(self, num_classes: int, threshold: float, own: UserMetrics | None = None):
        self.num_classes, self.threshold, self.own = num_classes, threshold, own or UserMetrics()

    def score(self, found: dict[str, float]) -> float:
        return found["f1_macro"]

    def reset(self, device: torch.device) -> None:
        self.own.reset()
        self.sums_3C = torch.zeros(3, self.num_classes, dtype=torch.float64, device=device)
        self.totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right decisions, documents

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        self.own.update(prediction, batch)
        self.add(prediction.double(), batch.y)

    def add(self, logits_bC: Tensor, y_bC: Tensor) -> None:
        """Count documents: logits of their classes (float64), and for each whether it is true."""
        true_bC = y_bC.double()
        said_bC = (logits_bC.sigmoid() > self.threshold).double()
        self.sums_3C += torch.stack([(said_bC * true_bC).sum(0), said_bC.sum(0), true_bC.sum(0)])
        loss = F.binary_cross_entropy_with_logits(logits_bC, true_bC, reduction="sum")
        right = (said_bC == true_bC).sum().double()
        self.totals += torch.stack([loss, right, loss.new_full((), len(true_bC))])

    def compute(self, runtime: Runtime) -> dict[str, float]:
        sums = runtime.all_reduce_sum(torch.cat([self.totals, self.sums_3C.flatten()])).cpu()
        loss, right, documents = sums[:3].tolist()
        self.hits_C, self.said_C, self.true_C = sums[3:].view(3, self.num_classes)
        decisions = documents * self.num_classes
        return {
            "valid_loss": loss / decisions,
            "accuracy": right / decisions,
            "f1_macro": _f1(self.hits_C, self.said_C, self.true_C),
            "f1_micro": _f1(*(total[None] for total in (self.hits_C.sum(), self.said_C.sum(), self.true_C.sum()))),
            **self.own.compute(runtime),
        }


class RegressionMetrics:
    """Mean squared error, its root, mean absolute error, and the share of the variance that is explained (R2).

    Args:
        own: metrics of the user's beside these.
    """

    def __init__(self, own: UserMetrics | None = None):
        self.own = own or UserMetrics()

    def score(self, found: dict[str, float]) -> float:
        return -found["valid_loss"]

    def reset(self, device: torch.device) -> None:
        self.own.reset()
        self.sums = torch.zeros(5, dtype=torch.float64, device=device)

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        self.own.update(prediction, batch)
        self.add(prediction.double(), batch.y)

    def add(self, prediction_b1: Tensor, y_b: Tensor) -> None:
        """Count documents: the numbers that they are given (float64), and the true ones."""
        true_b, said_b = y_b.double(), prediction_b1[:, 0]
        error_b = said_b - true_b
        columns = (torch.ones_like(true_b), error_b**2, error_b.abs(), true_b, true_b**2)
        self.sums += torch.stack([column.sum() for column in columns])

    def compute(self, runtime: Runtime) -> dict[str, float]:
        count, squared, absolute, total, total_squared = runtime.all_reduce_sum(self.sums).tolist()
        spread = total_squared - total**2 / count
        mse = squared / count
        r2 = 1 - squared / spread if spread > 0 else math.nan
        found = {"valid_loss": mse, "rmse": math.sqrt(mse), "mae": absolute / count, "r2": r2}
        return {**found, **self.own.compute(runtime)}


def _f1(hits_C: Tensor, said_C: Tensor, true_C: Tensor) -> float:
    """Mean over the classes that are said or true; 0 where there is none."""
    total_C = said_C + true_C
    occurs_C = total_C > 0
    return (2 * hits_C / total_C)[occurs_C].mean().item() if occurs_C.any() else 0.0
