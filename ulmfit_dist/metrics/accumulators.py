"""Metrics as sums and counts, reduced over the ranks once per evaluation.

Each rank sums over its own tokens or documents; the sums are all-reduced, then divided. So a metric does not depend on how
documents are distributed over ranks. Trade-off: only metrics that follow from sums are computed here; others are in
`user.py`.
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
"""Maximum number of misclassified documents that an evaluation keeps."""


class Metrics(Protocol):
    """Interface of the metrics of an evaluation."""

    def score(self, metrics: dict[str, float]) -> float:
        """Return the score of a checkpoint, from the metrics of `compute`; higher is better."""

    def reset(self, device: torch.device) -> None:
        """Set all sums to zero."""

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        """Add the predictions of a micro-batch."""

    def compute(self, runtime: Runtime) -> dict[str, float]:
        """Return the metrics over all ranks, by name. Collective."""


class LMMetrics:
    """Cross-entropy per token, perplexity, and accuracy of the next token."""

    def __init__(self, loss: DecoderLoss):
        self.loss = loss

    def score(self, metrics: dict[str, float]) -> float:
        return -metrics["valid_loss"]

    def reset(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        self.sums += torch.stack(self.loss.score(prediction, batch.y))

    def compute(self, runtime: Runtime) -> dict[str, float]:
        loss, correct, count = runtime.all_reduce_sum(self.sums).tolist()
        return {"valid_loss": loss / count, "perplexity": perplexity(loss / count), "accuracy": correct / count}


@dataclass(frozen=True)
class Misclassification:
    """Misclassified document.

    Attributes:
        document: index in the token store.
        label, predicted: indices of the true and the predicted class.
        probability: probability of the predicted class.
        loss: cross-entropy, in nats.
    """

    document: int
    label: int
    predicted: int
    probability: float
    loss: float


class ClassifierMetrics:
    """Cross-entropy per document, accuracy and macro-F1, the latter two from the confusion matrix.

    The attributes cover all ranks after `compute`; `metrics/calibration.py` computes scores from the first two.

    Args:
        user_metrics: user-defined metrics, computed in addition.

    Attributes:
        confusion_CC: documents by true and predicted class, float64 [classes, classes].
        bins_K3: documents, correct predictions and sum of confidences, by confidence, float64 [`NUM_BINS`, 3].
        brier_score: squared distance of the probabilities from the one-hot label, summed over the classes, mean over the
            documents: from 0 to 2.
        most_wrong: at most `NUM_WRONG` misclassified documents, highest loss first.
    """

    def __init__(self, num_classes: int, user_metrics: UserMetrics | None = None):
        self.num_classes, self.user_metrics = num_classes, user_metrics or UserMetrics()

    def score(self, metrics: dict[str, float]) -> float:
        return metrics["accuracy"]

    def reset(self, device: torch.device) -> None:
        self.user_metrics.reset()
        self.losses = torch.zeros(2, dtype=torch.float64, device=device)  # cross-entropy, squared distance
        self.confusion_CC = torch.zeros(self.num_classes, self.num_classes, dtype=torch.float64, device=device)
        self.bins_K3 = torch.zeros(NUM_BINS, 3, dtype=torch.float64, device=device)
        self.wrong_W5 = torch.zeros(0, 5, dtype=torch.float64, device=device)  # fields of Misclassification

    def update(self, prediction: Tensor, batch: MicroBatch) -> None:
        self.user_metrics.update(prediction, batch)
        documents_b = None if batch.documents is None else torch.from_numpy(batch.documents).to(batch.y.device)
        self.add(prediction.double().log_softmax(1), batch.y, documents_b)

    def add(self, log_probability_bC: Tensor, label_b: Tensor, document_b: Tensor | None = None) -> None:
        """Add documents: log-probabilities of the classes (float64), true classes, and indices in the store."""
        probability_bC = log_probability_bC.exp()
        confidence_b, predicted_b = probability_bC.max(1)
        loss_b = F.nll_loss(log_probability_bC, label_b, reduction="none")
        square_b = (probability_bC - F.one_hot(label_b, self.num_classes)).square().sum(1)
        self.losses += torch.stack([loss_b.sum(), square_b.sum()])
        cells = label_b * self.num_classes + predicted_b
        self.confusion_CC += torch.bincount(cells, minlength=self.num_classes**2).view_as(self.confusion_CC)
        bin_b = (confidence_b * NUM_BINS).ceil().long().clamp(1, NUM_BINS) - 1
        counts_b3 = torch.stack([torch.ones_like(confidence_b), (predicted_b == label_b).double(), confidence_b], dim=1)
        self.bins_K3 += F.one_hot(bin_b, NUM_BINS).double().T @ counts_b3
        if document_b is not None:
            columns = (document_b, label_b, predicted_b, confidence_b, loss_b)
            self._keep_most_wrong(torch.stack([column.double() for column in columns], dim=1))

    def _keep_most_wrong(self, rows_b5: Tensor) -> None:
        """Keep the rows of the highest loss. Correct predictions rank last: filtering them would synchronize the device."""
        rows_W5 = torch.cat([self.wrong_W5, rows_b5])
        loss_of_wrong = torch.where(rows_W5[:, 1] != rows_W5[:, 2], rows_W5[:, 4], -1)
        self.wrong_W5 = rows_W5[loss_of_wrong.topk(min(NUM_WRONG, len(rows_W5))).indices]

    def compute(self, runtime: Runtime) -> dict[str, float]:
        local = (self.losses, self.confusion_CC.flatten(), self.bins_K3.flatten())
        losses, confusion, bins = runtime.all_reduce_sum(torch.cat(local)).cpu().split([len(part) for part in local])
        self.confusion_CC, self.bins_K3 = confusion.view(self.confusion_CC.shape), bins.view(self.bins_K3.shape)
        valid_loss, self.brier_score = (losses / self.confusion_CC.sum()).tolist()
        rows = [row for rows in runtime.all_gather_object(self.wrong_W5.tolist()) for row in rows if row[1] != row[2]]
        rows.sort(key=lambda row: (-row[4], row[0]))
        self.most_wrong = [Misclassification(*map(int, row[:3]), *row[3:]) for row in rows[:NUM_WRONG]]
        return {
            "valid_loss": valid_loss,
            "accuracy": (self.confusion_CC.diagonal().sum() / self.confusion_CC.sum()).item(),
            "f1_macro": f1_macro(self.confusion_CC),
            **self.user_metrics.compute(runtime),
        }


def perplexity(loss: float) -> float:
    """Return the exponential of a mean cross-entropy in nats; infinite on overflow."""
    return math.exp(loss) if loss < 700 else math.inf


def f1_macro(confusion_CC: Tensor) -> float:
    """Return the mean F1 score of the classes that occur or are predicted; rows are true classes."""
    hits_C = confusion_CC.diagonal()
    total_C = confusion_CC.sum(0) + confusion_CC.sum(1)
    return (2 * hits_C / total_C)[total_C > 0].mean().item()
