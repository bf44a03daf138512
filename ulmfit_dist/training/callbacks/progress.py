"""Progress of a stage's training: a bar or lines for each epoch and each validation, with the remaining time.

The remaining time follows from the expected cost of the epochs, which the plan has estimated, and the time spent so far.
Trade-off: it assumes that the relative costs of the epochs are right.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastai.callback.core import Callback

from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.training.callbacks.order import CallbackOrder
from ulmfit_dist.utils.formatting import duration
from ulmfit_dist.utils.progress import Progress


class StageClock:
    """Remaining time of a stage, from the completed share of its expected cost.

    Args:
        epoch_costs: cost of each epoch of the stage, in any unit: expected seconds, or steps.
        later_seconds: expected duration, in seconds, of the work after the stage; None: unknown.
    """

    def __init__(self, epoch_costs: Sequence[float], later_seconds: float | None = None):
        self.epoch_costs, self.later_seconds = epoch_costs, later_seconds
        self._first: float | None = None

    def left(self, epoch: int, share: float, seconds: float) -> float | None:
        """Return the remaining seconds of the stage; None as long as they are unknown.

        Args:
            epoch: completed epochs of the stage.
            share: completed share of the current epoch.
            seconds: time since the first call, which must be made before the first step.
        """
        done = sum(self.epoch_costs[:epoch]) + share * sum(self.epoch_costs[epoch : epoch + 1])
        if self._first is None:
            self._first = done
        worked = done - self._first
        return max(0.0, (sum(self.epoch_costs) - done) * seconds / worked) if worked > 0 else None

    def describe(self, left: float | None, elapsed: float) -> str:
        """Return the elapsed time of the stage, and the remaining time of stage and run, as text."""
        parts = [f"{duration(elapsed)} elapsed"]
        if left is not None:
            parts.append(f"{duration(left)} left of the stage")
            if self.later_seconds:
                parts.append(f"{duration(left + self.later_seconds)} of the run")
        return ", ".join(parts)


class StageProgressCallback(Callback):
    """Shows the progress of each epoch and of each validation.

    Args:
        runtime: of this rank; only rank 0 prints.
        unit: unit of the throughput, "tokens" or "examples".
        clock: remaining time of the stage.
    """

    order = CallbackOrder.PROGRESS

    def __init__(self, runtime: Runtime, unit: str, clock: StageClock):
        self.runtime, self.unit, self.clock = runtime, unit, clock
        self.bar: Progress | None = None
        self.started: float | None = None

    def before_train(self) -> None:
        learn = self.learn
        first_step = learn.train_state.first_step
        self._open("", len(learn.dls.train), first_step)
        if self.started is None:
            self.started = time.perf_counter()
            self.clock.left(learn.stage_epoch, first_step / max(1, len(learn.dls.train)), 0.0)

    def before_validate(self) -> None:
        if self.started is not None:
            self._open(", validation", len(self.learn.dls.valid))

    def after_batch(self) -> None:
        if self.bar is None or not self.bar.is_shown:
            return
        learn = self.learn
        if not learn.training:
            self.bar.advance()
            return
        batch = learn.micro_batches[0]
        counted = batch.global_tokens if self.unit == "tokens" else batch.global_rows
        assert self.started is not None
        now = time.perf_counter()
        left = self.clock.left(learn.stage_epoch, (learn.iter + 1) / learn.n_iter, now - self.started)
        clock = self.clock.describe(left, learn.tracking.seconds)
        self.bar.advance(counted=counted, loss=learn.tracking.last_loss, clock=clock)

    def after_train(self) -> None:
        self._close()

    def after_cancel_train(self) -> None:
        self._close()

    def after_validate(self) -> None:
        self._close()

    def after_cancel_validate(self) -> None:
        self._close()

    def _open(self, what: str, total: int, first: int = 0) -> None:
        learn = self.learn
        epoch = learn.stage_epoch + (0 if what else 1)  # EpochCounter counts it before its validation
        label = f"{learn.stage}, epoch {epoch} of {len(self.clock.epoch_costs)}{what}"
        self.bar = Progress(label, total, self.runtime.is_main, self.unit, first)
        self.bar.__enter__()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.__exit__(None, None, None)
            self.bar = None
