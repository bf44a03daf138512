"""Follows a fit: what goes to the `Tracker`, and a line per epoch in the terminal."""

from __future__ import annotations

import time
from typing import Any

import torch
from fastai.callback.core import Callback

from ulmfit_dist.progress import Progress
from ulmfit_dist.training.tracking import Tracker


class TrackingCallback(Callback):
    """Training loss and learning rate now and then, all metrics and a line in the terminal per epoch.

    What it adds up is part of a checkpoint, so that a resumed run logs what it would have logged.

    Args:
        tracker: where it goes.
        unit: "tokens" or "examples": what throughput is counted in.
    """

    order, run_valid = 80, False

    def __init__(self, tracker: Tracker, unit: str):
        self.tracker, self.unit, self.runtime = tracker, unit, tracker.runtime
        device = self.runtime.device
        self.epoch_sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the loss, and of its weights
        self.recent_sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.tokens, self.trained, self.epoch_trained = 0, 0, 0
        self.train_seconds, self.epoch_seconds = 0.0, 0.0
        self.earlier_seconds, self.started = 0.0, time.perf_counter()
        self.progress: Progress | None = None

    @property
    def seconds(self) -> float:
        """Time that the stage has taken, in this process and, before a resume, in others."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def before_train(self) -> None:
        self.mark = time.perf_counter()
        self.progress = Progress(self._label(), len(self.learn.dls.train), self.runtime.is_main)
        self.progress.__enter__()
        self.progress.advance(self.learn.first_step)

    def after_batch(self) -> None:
        batches = self.learn.micro_batches
        weight = sum(batch.weight for batch in batches)  # of this rank in the global batch
        shares = torch.stack([self.learn.loss.double() * weight, self.epoch_sums.new_tensor(weight)])
        self.epoch_sums += shares
        self.recent_sums += shares
        self.tokens += batches[0].global_tokens
        self.epoch_trained += batches[0].global_tokens if self.unit == "tokens" else batches[0].global_rows
        now = time.perf_counter()
        self.epoch_seconds += now - self.mark
        self.mark = now
        assert self.progress is not None
        self.progress.advance()
        if self.learn.stage_step % self.tracker.config.tracking.log_every == 0:
            self._log_step()

    def after_train(self) -> None:
        self._close_progress()

    def after_cancel_train(self) -> None:
        self._close_progress()

    def after_epoch(self) -> None:
        loss, weight = self.runtime.sum(self.epoch_sums).tolist()
        rate = self.epoch_trained / self.epoch_seconds
        metrics = {"train_loss": loss / weight, **self.learn.valid_metrics, f"{self.unit}_per_second": round(rate, 1)}
        self.tracker.log(self.learn.stage, self._position(), metrics)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if not name.endswith("_per_second"))
        self.runtime.print(f"{self._label():<34}{shown}  {rate:,.0f} {self.unit}/s  {self.epoch_seconds:.0f} s")
        self.trained += self.epoch_trained
        self.train_seconds += self.epoch_seconds
        self.epoch_sums.zero_()
        self.epoch_trained, self.epoch_seconds = 0, 0.0

    def final_metrics(self) -> dict[str, float]:
        """What summary.json says of the stage."""
        return {**self.learn.valid_metrics, f"{self.unit}_per_second": round(self.trained / self.train_seconds, 1)}

    def state_dict(self) -> dict[str, Any]:
        """What has been added up so far, over all ranks, as JSON. Collective."""
        return {
            "epoch_sums": self.runtime.sum(self.epoch_sums).tolist(),
            "recent_sums": self.runtime.sum(self.recent_sums).tolist(),
            "tokens": self.tokens,
            "trained": self.trained,
            "epoch_trained": self.epoch_trained,
            "train_seconds": self.train_seconds,
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds,
            "valid_metrics": getattr(self.learn, "valid_metrics", None),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sums over all ranks become rank 0's."""
        for name in ("epoch_sums", "recent_sums"):
            sums = getattr(self, name)
            sums.copy_(sums.new_tensor(state[name]) * float(self.runtime.is_main))
        for name in ("tokens", "trained", "epoch_trained", "train_seconds", "epoch_seconds"):
            kind = type(getattr(self, name))
            setattr(self, name, kind(state[name]))
        self.earlier_seconds = float(state["seconds"])
        if state["valid_metrics"] is not None:
            self.learn.valid_metrics = state["valid_metrics"]

    def _log_step(self) -> None:
        loss, weight = self.runtime.sum(self.recent_sums).tolist()
        self.recent_sums.zero_()
        metrics = {"train_loss": loss / weight, "learning_rate": self.learn.opt.hypers[-1]["lr"]}
        self.tracker.log(self.learn.stage, self._position(), metrics)

    def _position(self) -> dict[str, Any]:
        learn = self.learn
        return {"phase": learn.phase, "epoch": learn.stage_epoch, "step": learn.stage_step, "tokens": self.tokens}

    def _label(self) -> str:
        learn = self.learn
        return f"{learn.stage} phase {learn.phase + 1} epoch {learn.epoch + 1}/{learn.n_epoch}"

    def _close_progress(self) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
            self.progress = None
