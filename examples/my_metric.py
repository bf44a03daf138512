"""A metric of one's own: a function from the logits of all validation documents, [N, C], and their labels, [N].

classifier:
  metrics:
    - examples.my_metric.among_two
    - {path: fastai.metrics.F1Score, average: weighted, name: f1_weighted}
"""

from __future__ import annotations

from torch import Tensor


def among_two(logits_NC: Tensor, y_N: Tensor) -> Tensor:
    """Share of the documents whose class is one of the two that the classifier holds most probable."""
    return (logits_NC.topk(2, dim=1).indices == y_N[:, None]).any(1).float().mean()
