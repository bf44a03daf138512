"""User-defined callback: multiplies the learning rates by a factor after each epoch that did not improve the score.

    classifier:
      callbacks: [{path: examples.my_callback.LowerRates, factor: 0.5}]

The score is equal on all ranks, so every rank sets the same rates. `state_dict` and `load_state_dict` return and take JSON:
they make the callback part of checkpoints, so a resumed run ends with the same weights.
"""

from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback


class LowerRates(Callback):
    """Multiply all learning rates by a factor for the rest of the stage, once per epoch without improvement.

    Args:
        factor: between 0 and 1.
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
