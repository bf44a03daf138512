"""A callback of one's own: lower learning rates from the epoch on that was no better than the best before it.

    classifier:
      callbacks: [{path: examples.my_callback.LowerRates, factor: 0.5}]

It does the same on every rank, as the validation's score is the same on all of them. With `state_dict` and
`load_state_dict`, which give and take JSON, it is part of a checkpoint, and a resumed run ends with the same weights.
"""

from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback


class LowerRates(Callback):
    """Multiplies all learning rates by a factor for the rest of the stage, once for each epoch that was no better.

    Args:
        factor: below 1.
    """

    order = 61  # after fastai's schedule has set the rates of a step

    def __init__(self, factor: float = 0.5):
        self.factor, self.scale, self.best_score = factor, 1.0, float("-inf")

    def before_batch(self) -> None:
        if self.learn.training:
            for hyper in self.learn.opt.hypers:
                hyper["lr"] *= self.scale

    def after_epoch(self) -> None:
        score = self.learn.score
        if score <= self.best_score:
            self.scale *= self.factor
        self.best_score = max(score, self.best_score)

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "best_score": self.best_score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale, self.best_score = state["scale"], state["best_score"]
