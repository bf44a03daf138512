"""User-defined metric: a function from the logits of all validation documents, [N, C], and their labels, [N].

classifier:
  metrics:
    - examples.custom_metric.among_two
    - {path: fastai.metrics.F1Score, average: weighted, name: f1_weighted}
"""

from __future__ import annotations

from torch import Tensor


def among_two(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    """Return the share of documents whose class is among the two most probable ones."""
    return (logits_NC.topk(2, dim=1).indices == y_N[:, None]).any(1).float().mean()
