"""The classifier's training loss: cross-entropy with smoothed labels and weighted classes.

It is torch's, so a weighted mean divides by the weights of its documents, and not by their number. That is no mean of the
ranks' means; but every rank computes the loss of the whole global batch (`training/train_steps.py`), so it is the same on
any number of ranks. Validation measures the plain cross-entropy, which stays comparable whatever the training loss is.

B: documents of the global batch, C: classes.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn, tensor
from torch.nn import functional as F

from ulmfit_dist.config.schema import ClassifierConfig
from ulmfit_dist.errors import UserError


class ClassifierLoss(nn.Module):
    """Mean cross-entropy over the documents of a batch, each weighed by its class.

    Args:
        label_smoothing: share of a target's probability that is spread over all classes (Szegedy et al., 2016).
        class_weights: of each class; None for equal ones.
    """

    def __init__(self, label_smoothing: float = 0.0, class_weights: list[float] | None = None):
        super().__init__()
        self.label_smoothing, self.class_weights = label_smoothing, class_weights
        self.weights_C: Tensor | None
        self.register_buffer("weights_C", None, persistent=False)

    def forward(self, logits_BC: Tensor, y_B: Tensor) -> Tensor:
        """A scalar."""
        weights_C = self._weights_like(logits_BC)
        return F.cross_entropy(logits_BC, y_B, weight=weights_C, label_smoothing=self.label_smoothing)

    def _weights_like(self, logits_BC: Tensor) -> Tensor | None:
        """The weights in type and on device of the logits, moved there once: a copy in each step would wait for a GPU."""
        if self.class_weights is None:
            return None
        if self.weights_C is None or (self.weights_C.device, self.weights_C.dtype) != (logits_BC.device, logits_BC.dtype):
            self.weights_C = tensor(self.class_weights).to(logits_BC)
        return self.weights_C


def build_loss(settings: ClassifierConfig, labels: np.ndarray, names: list[str]) -> ClassifierLoss:
    """The loss that a config asks for.

    Args:
        labels: of the training documents, by index.
        names: of the classes.

    Raises:
        UserError: as many weights as there are no classes.
    """
    weights = settings.class_weights
    if weights == "balanced":
        weights = balanced_weights(np.bincount(labels, minlength=len(names)))
    elif weights is not None and len(weights) != len(names):
        raise UserError(
            f"classifier.class_weights={weights} are {len(weights)}, for {len(names)} classes: give a weight for each of "
            f"{', '.join(names)}, in this order"
        )
    return ClassifierLoss(settings.label_smoothing, weights)


def balanced_weights(counts_C: np.ndarray) -> list[float]:
    """Weights by which every class counts alike: the mean number of documents over a class's own; 1 for a class of none."""
    mean = counts_C.sum() / np.count_nonzero(counts_C)
    return [float(mean / count) if count else 1.0 for count in counts_C]
