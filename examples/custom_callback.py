"""User-defined callback: multiplies the learning rates by a factor after each epoch that did not improve the score.

    python examples/custom_callback.py          # trains a small language model with it

In a config:

    lm:
      callbacks: [{path: examples.custom_callback.LowerRates, factor: 0.5, min_delta: 0.1}]

The score is equal on all ranks, so every rank sets the same rates. `state_dict` and `load_state_dict` return and take JSON:
they make the callback part of checkpoints. Stop the script (Ctrl-C) and start it again: it resumes with the lowered rates.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from fastai.callback.core import Callback

from ulmfit_dist import load_config, train_lm


class LowerRates(Callback):
    """Multiply all learning rates by a factor for the rest of the stage, once per epoch without improvement.

    Args:
        factor: between 0 and 1.
        min_delta: smallest increase of the score that counts as an improvement.
    """

    order = 61  # after fastai's schedule has set the rates of a step

    def __init__(self, factor: float = 0.5, min_delta: float = 0.0):
        self.factor, self.min_delta = factor, min_delta
        self.scale, self.best_score = 1.0, float("-inf")

    def before_batch(self) -> None:
        if self.learn.training:
            for hyper in self.learn.opt.hypers:
                hyper["lr"] *= self.scale

    def after_epoch(self) -> None:
        score = self.learn.score  # of a language model: -valid_loss; of a classifier: accuracy
        if score <= self.best_score + self.min_delta:
            self.scale *= self.factor
            self.learn.accelerate.runtime.print(f"epoch {self.learn.stage_epoch}: learning rates times {self.scale:g}")
        self.best_score = max(score, self.best_score)

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.scale, "best_score": self.best_score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scale, self.best_score = state["scale"], state["best_score"]


def main() -> None:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/custom_callback")
    overrides = [f"runs_dir={run.parent}", f"name={run.name}", f"data.cache_dir={run}/cache", "tracking.wandb_mode=disabled"]
    overrides += ["data.max_documents=30", "tokenizer.max_vocab=1000", "model={emb_sz: 50, n_hid: 50, n_layers: 1}"]
    overrides += ["lm={global_batch_size: 8, drop_mult: 0.1, phases: [{epochs: 6, lr: 5e-2}]}"]
    overrides += ["lm.callbacks=[{path: examples.custom_callback.LowerRates, factor: 0.5, min_delta: 0.1}]"]
    train_lm(load_config("quickstart", overrides))


if __name__ == "__main__":
    main()
