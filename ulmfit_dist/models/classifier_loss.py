"""The classifier's training loss: cross-entropy with smoothed labels and weighted classes.

As in torch, the weighted mean divides by the sum of the documents' weights, not by their number, so it is not the mean of
the ranks' means. Every rank therefore computes the loss of the whole global batch (`training/train_steps.py`), which is the
same on any number of ranks. Validation measures the unweighted cross-entropy, which is comparable between training losses.

B: documents of the global batch, C: classes.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn, tensor
from torch.nn import functional as F

from ulmfit_dist.config.schema import ClassifierConfig
from ulmfit_dist.errors import UserError


class ClassifierLoss(nn.Module):
    """Mean cross-entropy over the documents of a batch, weighted by class.

    Args:
        label_smoothing: fraction of a target's probability that is spread over all classes (Szegedy et al., 2016).
        class_weights: weight of each class; None for equal weights.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: list[float] | None = None):
        super().__init__()
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self.weights_C: Tensor | None
        self.register_buffer("weights_C", None, persistent=False)

    def forward(self, logits_BC: Tensor, y_B: Tensor) -> Tensor:
        """Return the loss, a scalar."""
        weights_C = self._weights_like(logits_BC)
        return F.cross_entropy(logits_BC, y_B, weight=weights_C, label_smoothing=self.label_smoothing)

    def _weights_like(self, logits_BC: Tensor) -> Tensor | None:
        """Return the weights in the dtype and on the device of the logits, copied once: each copy synchronizes with a GPU."""
        if self.class_weights is None:
            return None
        if self.weights_C is None or (self.weights_C.device, self.weights_C.dtype) != (logits_BC.device, logits_BC.dtype):
            self.weights_C = tensor(self.class_weights).to(logits_BC)
        return self.weights_C


def build_loss(settings: ClassifierConfig, labels: np.ndarray, names: list[str]) -> ClassifierLoss:
    """Return the training loss of a config.

    Args:
        labels: class indices of the training documents.
        names: names of the classes.

    Raises:
        UserError: the number of weights differs from the number of classes.
    """
    weights = settings.class_weights
    if weights == "balanced":
        weights = balanced_weights(np.bincount(labels, minlength=len(names)))
    elif weights is not None and len(weights) != len(names):
        raise UserError(
            f"classifier.class_weights={weights} has {len(weights)} entries, but there are {len(names)} classes: give one weight "
            f"per class ({', '.join(names)}, in this order), or balanced"
        )
    return ClassifierLoss(settings.label_smoothing, weights)


def balanced_weights(counts_C: np.ndarray) -> list[float]:
    """Return weights that balance the classes: mean documents per class / documents of the class; 1 for an empty class."""
    mean = counts_C.sum() / np.count_nonzero(counts_C)
    return [float(mean / count) if count else 1.0 for count in counts_C]
