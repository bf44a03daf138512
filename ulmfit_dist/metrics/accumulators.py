"""Metrics as sums and counts, reduced over the ranks once per evaluation.

A metric is a fact about the data: each rank sums over its own tokens or documents, the sums are added up, and only then
divided. So a rank with fewer of them, or none, counts for what it has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.calibration import NUM_BINS
from ulmfit_dist.metrics.user import UserMetrics
from ulmfit_dist.models.fused_cross_entropy import DecoderLoss

NUM_WRONG = 20
"""Wrong predictions that an evaluation keeps."""


class Metrics(Protocol):
    """What an evaluation adds up."""

    def score(self, found: dict[str, float]) -> float:
        """What checkpoints are compared by, of what `compute` has found; higher is better."""

    def reset(self, device: torch.device) -> None: ...

    def update(self, prediction: Tensor, batch: MicroBatch) -> None: ...

    def compute(self, runtime: Runtime) -> dict[str, float]:
        """The metrics over all ranks, by name. Collective."""


class LMMetrics:
    """Cross-entropy per token, its exponential, and the share of next tokens guessed right."""

    def __init__(self, loss: DecoderLoss):
        self.loss = loss

    def score(self, found: dict[str, float]) -> float:
        return -found["valid_loss"]

    def reset(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        self.sums += torch.stack(self.loss.score(prediction, batch.y))

    def compute(self, runtime: Runtime) -> dict[str, float]:
        loss, correct, count = runtime.all_reduce_sum(self.sums).tolist()
        return {"valid_loss": loss / count, "perplexity": perplexity(loss / count), "accuracy": correct / count}


@dataclass(frozen=True)
class Misclassification:
    """A document whose class was not guessed.

    Attributes:
        document: its number in the token store.
        label, predicted: true class and the guessed one, by index.
        probability: of the guessed class.
        loss: cross-entropy, in nats.
    """

    document: int
    label: int
    predicted: int
    probability: float
    loss: float


class ClassifierMetrics:
    """Cross-entropy per document, accuracy and macro-F1, the latter two from the confusion matrix.

    Attributes are for after `compute`, over all ranks; `metrics/calibration.py` says what the first two come to.

    Args:
        own: metrics of the user's beside these.

    Attributes:
        confusion_CC: documents by true and predicted class, float64 [classes, classes].
        bins_K3: documents, right predictions and sum of confidences, by confidence, float64 [`NUM_BINS`, 3].
        brier_score: mean squared distance of a document's probabilities from what is true (1 for its class, 0 for the
            others), added up over the classes: from 0 to 2.
        most_wrong: wrong predictions of the highest loss, highest first, `NUM_WRONG` at most.
    """

    def __init__(self, num_classes: int, own: UserMetrics | None = None):
        self.num_classes, self.own = num_classes, own or UserMetrics()

    def score(self, found: dict[str, float]) -> float:
        return found["accuracy"]

    def reset(self, device: torch.device) -> None:
        self.own.reset()
        self.losses = torch.zeros(2, dtype=torch.float64, device=device)  # cross-entropy, squared distance
        self.confusion_CC = torch.zeros(self.num_classes, self.num_classes, dtype=torch.float64, device=device)
        self.bins_K3 = torch.zeros(NUM_BINS, 3, dtype=torch.float64, device=device)
        self.wrong_W5 = torch.zeros(0, 5, dtype=torch.float64, device=device)  # as the fields of WrongPrediction

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        self.own.update(prediction, batch)
        documents_b = None if batch.documents is None else torch.from_numpy(batch.documents).to(batch.y.device)
        self.add(prediction.double().log_softmax(1), batch.y, documents_b)

    def add(self, log_probability_bC: Tensor, label_b: Tensor, document_b: Tensor | None = None) -> None:
        """Count documents: logarithms of their classes' probabilities (float64), true classes, numbers in the store."""
        probability_bC = log_probability_bC.exp()
        confidence_b, predicted_b = probability_bC.max(1)
        loss_b = F.nll_loss(log_probability_bC, label_b, reduction="none")
        square_b = (probability_bC - F.one_hot(label_b, self.num_classes)).square().sum(1)
        self.losses += torch.stack([loss_b.sum(), square_b.sum()])
        cells = label_b * self.num_classes + predicted_b
        self.confusion_CC += torch.bincount(cells, minlength=self.num_classes**2).view_as(self.confusion_CC)
        bin_b = (confidence_b * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
        facts_b3 = torch.stack([torch.ones_like(confidence_b), (predicted_b == label_b).double(), confidence_b], dim=1)
        self.bins_K3 += F.one_hot(bin_b, NUM_BINS).double().T @ facts_b3
        if document_b is not None:
            columns = (document_b, label_b, predicted_b, confidence_b, loss_b)
            self._keep_most_wrong(torch.stack([column.double() for column in columns], dim=1))

    def _keep_most_wrong(self, rows_b5: Tensor) -> None:
        """Of the rows so far and these; right predictions, which a device cannot leave out without waiting, come last."""
        rows_W5 = torch.cat([self.wrong_W5, rows_b5])
        loss_of_wrong = torch.where(rows_W5[:, 1] != rows_W5[:, 2], rows_W5[:, 4], -1)
        self.wrong_W5 = rows_W5[loss_of_wrong.topk(min(NUM_WRONG, len(rows_W5))).indices]

    def compute(self, runtime: Runtime) -> dict[str, float]:
        mine = (self.losses, self.confusion_CC.flatten(), self.bins_K3.flatten())
        losses, confusion, bins = runtime.all_reduce_sum(torch.cat(mine)).cpu().split([len(part) for part in mine])
        self.confusion_CC, self.bins_K3 = confusion.view(self.confusion_CC.shape), bins.view(self.bins_K3.shape)
        valid_loss, self.brier_score = (losses / self.confusion_CC.sum()).tolist()
        rows = [row for rows in runtime.all_gather_object(self.wrong_W5.tolist()) for row in rows if row[1] != row[2]]
        rows.sort(key=lambda row: (-row[4], row[0]))
        self.most_wrong = [Misclassification(*map(int, row[:3]), *row[3:]) for row in rows[:NUM_WRONG]]
        return {
            "valid_loss": valid_loss,
            "accuracy": (self.confusion_CC.diagonal().sum() / self.confusion_CC.sum()).item(),
            "f1_macro": f1_macro(self.confusion_CC),
            **self.own.compute(runtime),
        }


def perplexity(loss: float) -> float:
    """Exponential of a mean cross-entropy in nats; infinite where it would overflow."""
    return math.exp(loss) if loss < 700 else math.inf


def f1_macro(confusion_CC: Tensor) -> float:
    """Mean F1 score of the classes that occur or are predicted; rows of the confusion matrix are true classes."""
    hits_C = confusion_CC.diagonal()
    total_C = confusion_CC.sum(0) + confusion_CC.sum(1)
    return (2 * hits_C / total_C)[total_C > 0].mean().item()
