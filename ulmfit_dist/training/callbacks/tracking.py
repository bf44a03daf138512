"""The callback that logs a fit to the `Tracker`: a line every few steps, all metrics per epoch.

A line contains values of the device: losses, gradient norm, times. On a GPU their copies and events are launched at the
line's step and read at the step of the next line, so that the device never idles. At the end of an epoch's training, and
before a checkpoint, the pending line is written immediately: metrics.jsonl has the same lines in the same order as if none
were deferred. Trade-off: on a GPU the terminal, W&B and metrics.jsonl lag by `tracking.log_interval` steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from fastai.callback.core import Callback

from ulmfit_dist.distributed.step_timer import PARTS, Spent, TimedIntervals
from ulmfit_dist.tracking.metric_logger import Table
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.training.callbacks.order import CallbackOrder
from ulmfit_dist.utils.host_copy import HostCopy

SMOOTHING = 0.98
"""Decay rate of the smoothed loss per step, as in fastai's `Recorder`."""

SUMS = ("epoch", "recent", "smoothed")
"""Sums of the loss: over the epoch, since the last line, and exponentially decayed."""

Tables = dict[str, Any]
"""Artifacts of an epoch, as JSON: samples, confusion matrix, most wrong predictions."""


@dataclass(frozen=True)
class PendingLine:
    """A line of metrics.jsonl whose values are being copied from the device.

    Attributes:
        position: phase, epoch, step and tokens.
        settings: learning rates and momentum of its step, and the micro-batch size if a lack of memory has reduced it.
        figures: loss since the last line and smoothed loss, summed over the ranks, the gradient norm, and further losses.
        names: names of the further losses of the step (`DistributedLearner.further_losses`).
        weights: divisors of the two losses.
        spent, step_timer: times of its steps: those already read, and those still on the device.
        steps, trained: steps since the last line, and the tokens or examples that they have trained on.
        communication_mb: MB that a rank sends per step.
        memory_gb: memory of this rank, in GB.
    """

    position: dict[str, Any]
    settings: dict[str, float]
    figures: HostCopy
    names: tuple[str, ...]
    weights: tuple[float, float]
    spent: Spent
    step_timer: TimedIntervals
    steps: int
    trained: int
    communication_mb: float
    memory_gb: float


class TrackingCallback(Callback):
    """Logs losses, rates, speed, memory and times every few steps; all metrics and a row in the terminal per epoch.

    Its sums are part of a checkpoint, so a resumed run logs what an uninterrupted one logs.

    Args:
        tracker: receives the lines.
        unit: unit of the throughput, "tokens" or "examples".
        make_tables: returns the artifacts of an epoch from those of the epoch before. Called on rank 0.

    Attributes:
        tables: artifacts of the last epoch; on rank 0.
        last_loss: mean loss since the line before the last one; None before the first line.
    """

    order, run_valid = CallbackOrder.TRACKING, False

    def __init__(self, tracker: Tracker, unit: str, make_tables: Callable[[Tables], Tables]):
        self.tracker, self.unit, self.runtime, self.make_tables = tracker, unit, tracker.runtime, make_tables
        self.log_interval = tracker.config.tracking.log_interval
        self.is_late = self.runtime.device.type != "cpu"  # on a CPU there is nothing to wait for
        self.pending: PendingLine | None = None
        self._begin_sums()
        self.tables: Tables = {}
        self.tokens, self.trained, self.epoch_trained, self.recent_trained = 0, 0, 0, 0
        self.train_seconds, self.epoch_seconds, self.recent_spent = 0.0, 0.0, Spent()
        self.recent_steps, self.gradient_norm, self.given_before = 0, self._vector(0.0), 0
        self.earlier_seconds, self.started = 0.0, time.perf_counter()
        self.last_loss: float | None = None

    @property
    def seconds(self) -> float:
        """Elapsed time of the stage, including that before a resume."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def before_train(self) -> None:
        self.given_before = self.runtime.bytes_given

    def before_step(self) -> None:
        if (self.learn.stage_step + 1) % self.log_interval == 0:
            self.gradient_norm = self._gradient_norm()

    def after_batch(self) -> None:
        batches = self.learn.micro_batches
        self._add_loss(sum(batch.weight for batch in batches))  # this rank's share of the global batch
        self.tokens += batches[0].global_tokens
        trained = batches[0].global_tokens if self.unit == "tokens" else batches[0].global_rows
        self.epoch_trained += trained
        self.recent_trained += trained
        self.recent_steps += 1
        if self.learn.stage_step % self.log_interval == 0:
            self.runtime.step_timer.end("optimizer")
            self.write_pending()
            self.pending = self._begin_line()
        if not self.is_late:
            self.write_pending()

    def after_train(self) -> None:
        self.write_pending()

    def after_fit(self) -> None:
        self.write_pending()

    def after_epoch(self) -> None:
        self._read_times()
        metrics = {
            "train_loss": self.runtime.all_reduce_sum(self.sums_3[:1]).item() / self.weights["epoch"],
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
        self._reset("epoch")
        self.epoch_trained, self.epoch_seconds = 0, 0.0

    def final_metrics(self) -> dict[str, float]:
        """Return the stage's entry of summary.json."""
        speed = {f"{self.unit}_per_second": round(self.trained / self.train_seconds, 1)}
        return {**self.learn.valid_metrics, **speed, **self._reduced_size()}

    def state_dict(self) -> dict[str, Any]:
        """Return sums and counts over all ranks, as JSON; writes the pending line first. Collective."""
        self._read_times()
        losses = self.runtime.all_reduce_sum(self.sums_3).tolist()
        return {
            "sums": {name: [loss, self.weights[name]] for name, loss in zip(SUMS, losses, strict=True)},
            "tables": self.runtime.broadcast_object(self.tables),
            "tokens": self.tokens,
            "trained": self.trained,
            "epoch_trained": self.epoch_trained,
            "train_seconds": self.train_seconds,
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds,
            "valid_metrics": self.learn.valid_metrics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; rank 0 continues with the sums of all ranks, the others with zeros."""
        losses, weights = zip(*(map(float, state["sums"][name]) for name in SUMS), strict=True)
        self.sums_3 = self._vector(*(loss * self.runtime.is_main for loss in losses))
        self.weights = dict(zip(SUMS, weights, strict=True))
        for name in ("tokens", "trained", "epoch_trained", "train_seconds", "epoch_seconds"):
            number = type(getattr(self, name))
            setattr(self, name, number(state[name]))
        self.tables = state["tables"] if self.tracker.config.tracking.log_text else without_texts(state["tables"])
        self.earlier_seconds = float(state["seconds"])
        self.learn.valid_metrics = dict(state["valid_metrics"])

    def write_pending(self) -> None:
        """Write the pending line, if there is one. Collective."""
        line, self.pending = self.pending, None
        if line is None:
            return
        spent = line.step_timer.read()
        self.epoch_seconds += spent.training
        spent += line.spent
        ranks = self.runtime.all_gather_object((spent.parts, line.memory_gb))
        loss, smoothed, gradient_norm, *further = line.figures.read()
        self.last_loss = loss / line.weights[0]
        num_steps = len(ranks) * line.steps
        metrics = {
            "loss": loss / line.weights[0],
            "loss_smoothed": smoothed / line.weights[1],
            **line.settings,
            "gradient_norm": gradient_norm,
            **dict(zip(line.names, further, strict=True)),
            f"{self.unit}_per_second": round(line.trained / spent.training, 1),
            "communication_mb": line.communication_mb,
            "memory_gb": round(max(memory for _, memory in ranks), 3),
            **{f"{part}_seconds": round(sum(parts[part] for parts, _ in ranks) / num_steps, 6) for part in PARTS},
        }
        self.tracker.log(self.learn.stage, line.position, metrics)

    def _begin_line(self) -> PendingLine:
        """Return the line of this step: one all-reduce on the device, for which the host does not wait."""
        summed_2 = self.runtime.all_reduce_sum(self.sums_3[1:])
        further = self.learn.further_losses
        line = PendingLine(
            self._position(),
            {**self._rates(), **self._reduced_size()},
            HostCopy(torch.cat([summed_2, self.gradient_norm, *(loss.double().view(1) for loss in further.values())])),
            tuple(further),
            (self.weights["recent"], self.weights["smoothed"]),
            self.recent_spent,
            self.runtime.step_timer.take(),
            self.recent_steps,
            self.recent_trained,
            round((self.runtime.bytes_given - self.given_before) / self.recent_steps / 1e6, 6),
            self._memory(),
        )
        self._reset("recent")
        self.recent_steps, self.recent_trained, self.recent_spent = 0, 0, Spent()
        self.given_before = self.runtime.bytes_given
        return line

    def _begin_sums(self) -> None:
        """Reset the sums of this rank's losses, weighted by its share of the global batch, and of all ranks' weights."""
        self.sums_3, self.weights = self._vector(0.0, 0.0, 0.0), dict.fromkeys(SUMS, 0.0)
        self.past_3, self.share_3 = self._vector(1.0, 1.0, SMOOTHING), self._vector(1.0, 1.0, 1 - SMOOTHING)

    def _add_loss(self, weight: float) -> None:
        """Add the step's loss, in two kernels. The shares of all ranks in a step sum to 1."""
        self.sums_3.mul_(self.past_3).addcmul_(self.share_3, self.learn.loss, value=weight)
        smoothed = SMOOTHING * self.weights["smoothed"] + 1 - SMOOTHING
        self.weights = {"epoch": self.weights["epoch"] + 1, "recent": self.weights["recent"] + 1, "smoothed": smoothed}

    def _reset(self, name: str) -> None:
        self.sums_3[SUMS.index(name)].zero_()  # assigning 0 would copy it from the CPU, and synchronize
        self.weights[name] = 0.0

    def _read_times(self) -> None:
        """Add the time since the last line; waits for the device."""
        self.write_pending()
        spent = self.runtime.step_timer.take().read()
        self.recent_spent += spent
        self.epoch_seconds += spent.training

    def _reduced_size(self) -> dict[str, float]:
        """Return the micro-batch size if a lack of memory has reduced it."""
        size = self.runtime.micro_batch_size
        return {} if size is None else {"micro_batch_size": size}

    def _rates(self) -> dict[str, float]:
        """Return rates and momentum of the optimizer: of the last layer group, which the recipe sets, and of each."""
        hypers = self.learn.opt.hypers
        by_group = {f"learning_rate_{number}": hyper["lr"] for number, hyper in enumerate(hypers)}
        return {"learning_rate": hypers[-1]["lr"], **by_group, "momentum": hypers[-1]["mom"]}

    def _gradient_norm(self) -> torch.Tensor:
        """Return the norm of the global gradient before clipping, the same on all ranks, as a vector of one element."""
        gradients = [parameter.grad for parameter in self.learn.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).double()
        scaler = self.learn.accelerate.accelerator.scaler
        return (norm if scaler is None else norm / scaler.scale(torch.ones_like(norm))).view(1)

    def _memory(self) -> float:
        """Return memory in GB: the peak of the GPU, or the resident memory of this process on a CPU."""
        if self.runtime.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.runtime.device) / 1e9
        return float(psutil.Process().memory_info().rss / 1e9)

    def _vector(self, *values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.runtime.device)

    def _position(self) -> dict[str, Any]:
        state = self.learn.train_state
        return {"phase": state.phase, "epoch": state.stage_epoch, "step": state.stage_step, "tokens": self.tokens}


def without_texts(tables: Tables) -> Tables:
    """Return the tables without texts, for a resume with tracking.log_text=false."""
    kept = {name: content for name, content in tables.items() if name != "samples"}
    if "most_wrong" in kept:
        kept["most_wrong"] = [{key: value for key, value in row.items() if key != "text"} for row in kept["most_wrong"]]
    return kept
