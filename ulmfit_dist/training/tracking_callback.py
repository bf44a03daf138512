"""Follows a fit: what of it goes to the `Tracker`, and when."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from fastai.callback.core import Callback

from ulmfit_dist.laps import PARTS
from ulmfit_dist.progress import Progress
from ulmfit_dist.training.tracking import Tracker
from ulmfit_dist.training.wandb_run import Table

SMOOTHING = 0.98
"""Weight of the past in the smoothed loss, as in fastai's `Recorder`."""

Tables = dict[str, Any]


class TrackingCallback(Callback):
    """Losses, rates, speed, memory and times now and then; all metrics, and a row in the terminal, per epoch.

    What it adds up is part of a checkpoint, so that a resumed run logs what it would have logged.

    Args:
        tracker: where it goes.
        unit: "tokens" or "examples": what throughput is counted in.
        make_tables: what else is to be seen after an epoch, as JSON: from that of the epoch before. Called on rank 0.
    """

    order, run_valid = 80, False

    def __init__(self, tracker: Tracker, unit: str, make_tables: Callable[[Tables], Tables]):
        self.tracker, self.unit, self.runtime, self.make_tables = tracker, unit, tracker.runtime, make_tables
        self.log_every = tracker.config.tracking.log_every
        # of the loss, and of its weights: over the epoch, since the last line, and with a past that fades
        self.sums = {name: self._zeros(2) for name in ("epoch", "recent", "smoothed")}
        self.tables: Tables = {}
        self.tokens, self.trained, self.epoch_trained, self.recent_trained = 0, 0, 0, 0
        self.train_seconds, self.epoch_seconds, self.recent_seconds = 0.0, 0.0, 0.0
        self.recent_steps, self.gradient_norm, self.given_before = 0, 0.0, 0
        self.earlier_seconds, self.started = 0.0, time.perf_counter()
        self.progress: Progress | None = None

    @property
    def seconds(self) -> float:
        """Time that the stage has taken, in this process and, before a resume, in others."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def before_train(self) -> None:
        learn = self.learn
        learn.accelerate.measure_every(self.log_every)
        self.mark, self.given_before = time.perf_counter(), self.runtime.bytes_given
        label = f"{learn.stage} phase {learn.phase + 1} epoch {learn.epoch + 1}/{learn.n_epoch}"
        self.progress = Progress(label, len(learn.dls.train), self.runtime.is_main)
        self.progress.__enter__()
        self.progress.advance(learn.first_step)

    def before_step(self) -> None:
        if (self.learn.stage_step + 1) % self.log_every == 0:
            self.gradient_norm = self._gradient_norm()

    def after_batch(self) -> None:
        batches = self.learn.micro_batches
        self._add_loss(sum(batch.weight for batch in batches))  # of this rank in the global batch
        self.tokens += batches[0].global_tokens
        trained = batches[0].global_tokens if self.unit == "tokens" else batches[0].global_rows
        now = time.perf_counter()
        self.epoch_trained += trained
        self.recent_trained += trained
        self.epoch_seconds += now - self.mark
        self.recent_seconds += now - self.mark
        self.recent_steps += 1
        self.mark = now
        assert self.progress is not None
        self.progress.advance()
        if self.learn.stage_step % self.log_every == 0:
            self._log_step()

    def after_train(self) -> None:
        self._close_progress()

    def after_cancel_train(self) -> None:
        self._close_progress()

    def after_epoch(self) -> None:
        metrics = {
            "train_loss": _mean(self.runtime.sum(self.sums["epoch"])),
            **self.learn.valid_metrics,
            f"{self.unit}_per_second": round(self.epoch_trained / self.epoch_seconds, 1),
            "epoch_seconds": round(self.epoch_seconds, 3),
        }
        if self.runtime.is_main:
            self.tables = self.make_tables(self.tables)
        samples = self.tables.get("samples", [])
        shown = {"samples": Table(list(samples[0]), [list(sample.values()) for sample in samples])} if samples else {}
        self.tracker.log(self.learn.stage, self._position(), metrics, shown)
        self.trained += self.epoch_trained
        self.train_seconds += self.epoch_seconds
        self.sums["epoch"].zero_()
        self.epoch_trained, self.epoch_seconds = 0, 0.0

    def final_metrics(self) -> dict[str, float]:
        """What summary.json says of the stage."""
        speed = {f"{self.unit}_per_second": round(self.trained / self.train_seconds, 1)}
        return {**self.learn.valid_metrics, **speed, **self._reduced_size()}

    def state_dict(self) -> dict[str, Any]:
        """What has been added up so far, over all ranks, as JSON. Collective."""
        return {
            "sums": {name: self.runtime.sum(sums).tolist() for name, sums in self.sums.items()},
            "tables": self.runtime.from_main(self.tables),
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
        for name, sums in self.sums.items():
            sums.copy_(sums.new_tensor(state["sums"][name]) * float(self.runtime.is_main))
        for name in ("tokens", "trained", "epoch_trained", "train_seconds", "epoch_seconds"):
            kind = type(getattr(self, name))
            setattr(self, name, kind(state[name]))
        self.tables = state["tables"] if self.tracker.config.tracking.log_text else without_texts(state["tables"])
        self.earlier_seconds = float(state["seconds"])
        if state["valid_metrics"] is not None:
            self.learn.valid_metrics = state["valid_metrics"]

    def _add_loss(self, weight: float) -> None:
        shares = torch.stack([self.learn.loss.double() * weight, self.sums["epoch"].new_full((), weight)])
        self.sums["epoch"] += shares
        self.sums["recent"] += shares
        self.sums["smoothed"].mul_(SMOOTHING).add_(shares, alpha=1 - SMOOTHING)

    def _log_step(self) -> None:
        """One exchange between the ranks for all that a line says."""
        exposed, parts = self.learn.accelerate.exposed_exchange(), self.runtime.laps.take()
        memory_W = self._zeros(self.runtime.world_size)
        memory_W[self.runtime.rank] = self._memory()
        seconds_P = self._zeros(len(PARTS)) + torch.tensor(list(parts.values()), dtype=torch.float64).to(memory_W.device)
        mine = torch.cat([self.sums["recent"], self.sums["smoothed"], seconds_P, memory_W, self._zeros(1) + exposed])
        recent, smoothed, seconds_P, memory_W, exposed_1 = (
            self.runtime.sum(mine).cpu().split([2, 2, len(PARTS), self.runtime.world_size, 1])
        )
        each = self.runtime.world_size * self.recent_steps
        seconds = {part: total / each for part, total in zip(PARTS, seconds_P.tolist(), strict=True)}
        behind = min(exposed_1.item() / self.runtime.world_size, seconds["backward"])
        seconds |= {"backward": seconds["backward"] - behind, "communication": seconds["communication"] + behind}
        metrics = {
            "loss": _mean(recent),
            "loss_smoothed": _mean(smoothed),
            **self._rates(),
            "gradient_norm": self.gradient_norm,
            f"{self.unit}_per_second": round(self.recent_trained / self.recent_seconds, 1),
            "communication_mb": round((self.runtime.bytes_given - self.given_before) / self.recent_steps / 1e6, 6),
            "memory_gb": round(memory_W.max().item(), 3),
            **{f"{part}_seconds": round(value, 6) for part, value in seconds.items()},
            **self._reduced_size(),
        }
        self.tracker.log(self.learn.stage, self._position(), metrics)
        self.sums["recent"].zero_()
        self.recent_steps, self.recent_trained, self.recent_seconds = 0, 0, 0.0
        self.given_before = self.runtime.bytes_given

    def _reduced_size(self) -> dict[str, float]:
        """The micro-batch size, where a lack of memory has led to it."""
        size = self.runtime.micro_batch_size
        return {} if size is None else {"micro_batch_size": size}

    def _rates(self) -> dict[str, float]:
        """The optimizer's: of the last layer group, which the recipe names, and of each."""
        hypers = self.learn.opt.hypers
        by_group = {f"learning_rate_{number}": hyper["lr"] for number, hyper in enumerate(hypers)}
        return {"learning_rate": hypers[-1]["lr"], **by_group, "momentum": hypers[-1]["mom"]}

    def _gradient_norm(self) -> float:
        """Of the global gradient before clipping, which all ranks have by now."""
        gradients = [parameter.grad for parameter in self.learn.model.parameters() if parameter.grad is not None]
        scaler = self.learn.accelerate.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        return torch.nn.utils.get_total_norm(gradients).item() / scale

    def _memory(self) -> float:
        """GB: of the GPU at most so far, or of this process on a CPU."""
        if self.runtime.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.runtime.device) / 1e9
        return psutil.Process().memory_info().rss / 1e9

    def _zeros(self, size: int) -> torch.Tensor:
        return torch.zeros(size, dtype=torch.float64, device=self.runtime.device)

    def _position(self) -> dict[str, Any]:
        learn = self.learn
        return {"phase": learn.phase, "epoch": learn.stage_epoch, "step": learn.stage_step, "tokens": self.tokens}

    def _close_progress(self) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
            self.progress = None


def without_texts(tables: Tables) -> Tables:
    """Tables of a start that was allowed to show texts, for one that is not."""
    kept = {name: content for name, content in tables.items() if name != "samples"}
    if "most_wrong" in kept:
        kept["most_wrong"] = [{key: value for key, value in row.items() if key != "text"} for row in kept["most_wrong"]]
    return kept


def _mean(sums_2: torch.Tensor) -> float:
    total, weight = sums_2.tolist()
    return total / weight
