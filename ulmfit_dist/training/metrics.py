"""Metrics as sums and counts, reduced over the ranks once per evaluation.

A metric is a fact about the data: each rank sums over its own tokens or documents, the sums are added up, and only then
divided. So a rank with fewer of them, or none, counts for what it has.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.model.loss import DecoderLoss
from ulmfit_dist.runtime import Runtime


class Metrics(Protocol):
    """What an evaluation adds up."""

    def reset(self, device: torch.device) -> None: ...

    def update(self, prediction: Tensor, batch: MicroBatch) -> None: ...

    def compute(self, runtime: Runtime) -> dict[str, float]:
        """The metrics over all ranks, by name. Collective."""


class LMMetrics:
    """Cross-entropy per token, its exponential, and the share of next tokens guessed right."""

    def __init__(self, loss: DecoderLoss):
        self.loss = loss

    def reset(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        self.sums += torch.stack(self.loss.score(prediction, batch.y))

    def compute(self, runtime: Runtime) -> dict[str, float]:
        loss, correct, count = runtime.sum(self.sums).tolist()
        return {"valid_loss": loss / count, "perplexity": perplexity(loss / count), "accuracy": correct / count}


class ClassifierMetrics:
    """Cross-entropy per document, accuracy and macro-F1, the latter two from the confusion matrix.

    Attributes:
        confusion_CC: documents by true and predicted class, float64 [classes, classes]; over all ranks after `compute`.
    """

    def __init__(self, num_classes: int):
        self.num_classes = num_classes

    def reset(self, device: torch.device) -> None:
        self.loss = torch.zeros(1, dtype=torch.float64, device=device)
        self.confusion_CC = torch.zeros(self.num_classes, self.num_classes, dtype=torch.float64, device=device)

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        self.loss += F.cross_entropy(prediction.double(), batch.y, reduction="sum")
        cells = batch.y * self.num_classes + prediction.argmax(1)
        self.confusion_CC += torch.bincount(cells, minlength=self.num_classes**2).view_as(self.confusion_CC)

    def compute(self, runtime: Runtime) -> dict[str, float]:
        sums = runtime.sum(torch.cat([self.loss, self.confusion_CC.flatten()])).cpu()
        self.confusion_CC = sums[1:].view(self.num_classes, self.num_classes)
        count = self.confusion_CC.sum().item()
        return {
            "valid_loss": sums[0].item() / count,
            "accuracy": self.confusion_CC.diagonal().sum().item() / count,
            "f1_macro": f1_macro(self.confusion_CC),
        }


def perplexity(loss: float) -> float:
    """Exponential of a mean cross-entropy in nats; infinite where it would overflow."""
    return math.exp(loss) if loss < 700 else math.inf


def f1_macro(confusion_CC: Tensor) -> float:
    """Mean F1 score of the classes that occur or are predicted; rows of the confusion matrix are true classes."""
    hits_C = confusion_CC.diagonal()
    total_C = confusion_CC.sum(0) + confusion_CC.sum(1)
    return (2 * hits_C / total_C)[total_C > 0].mean().item()
