"""The callback that saves checkpoints and stops training, by decisions of all ranks between two steps.

About once a second the ranks exchange their status: a received signal, a loss that is NaN or inf; and rank 0 adds whether a
checkpoint is due. So all ranks save, or stop, after the same step, and the steps between need no exchange. The ranks also
agree on the number of steps until the next exchange. On a GPU an exchange reads the losses that were copied at the previous
one, so no training step waits for the device. Trade-off: a signal, or a bad loss, takes effect up to a second later.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from fastai.callback.core import Callback

from ulmfit_dist.checkpointing.async_writer import AsyncCheckpointWriter
from ulmfit_dist.checkpointing.learner_state import LearnerStateDict
from ulmfit_dist.checkpointing.manager import Checkpoint
from ulmfit_dist.config.schema import CheckpointConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.distributed.signals import ShutdownRequest
from ulmfit_dist.errors import ResumableInterrupt, UserError, mark_collective
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.training.callbacks.order import CallbackOrder
from ulmfit_dist.utils.host_copy import HostCopy

SECONDS_BETWEEN_EXCHANGES = 0.5
"""Target interval of status exchanges, in seconds."""
MAX_STEPS_BETWEEN_EXCHANGES = 50
"""Largest interval of status exchanges, in steps."""


@dataclass(frozen=True)
class RankStatus:
    """Status of a rank since the last exchange.

    Attributes:
        signal: name of the signal that this rank has received.
        bad_step: first step whose loss is NaN or inf.
        is_due: whether a checkpoint is due by the clock.
        seconds: mean time of a step, in seconds.
    """

    signal: str | None
    bad_step: int | None
    is_due: bool
    seconds: float


class CheckpointCallback(Callback):
    """Saves at intervals, at the end of each epoch, and before the run stops on a signal.

    Args:
        settings: intervals.
        state: state of the learner, with the progress at which this process begins.
        writer: writes the checkpoints.
        tracker: its lines so far and W&B's run id are saved with each checkpoint.
        shutdown: signal that this process has received.
        metadata: further keys of state.json.

    Attributes:
        reached: progress at which a resume would continue.
        saved: progress of the last checkpoint; None before the first.
        stalls: time that training has waited for each save, in seconds.
    """

    order = CallbackOrder.CHECKPOINT

    def __init__(
        self,
        settings: CheckpointConfig,
        state: LearnerStateDict,
        writer: AsyncCheckpointWriter,
        tracker: Tracker,
        shutdown: ShutdownRequest,
        metadata: dict[str, object],
    ):
        self.settings, self.state, self.writer, self.tracker = settings, state, writer, tracker
        self.shutdown, self.metadata = shutdown, metadata
        self.runtime: Runtime = state.runtime
        self.reached = replace(state.learner.train_state)
        self.saved = self.reached if writer.last is not None else None
        self.stalls: list[float] = []
        self.losses: list[tuple[int, torch.Tensor]] = []
        self.copied: list[tuple[list[int], HostCopy]] = []  # steps, and whether their losses are finite
        self.last_saved = time.perf_counter()
        self._exchange_after_next_step()

    def before_train(self) -> None:
        self._exchange_after_next_step()

    def after_train(self) -> None:
        self._copy_losses()
        self._refuse_bad_losses(self.runtime.all_gather_object(self._status()))  # before a validation in vain

    def before_validate(self) -> None:
        self._exchange_after_next_step()

    def after_batch(self) -> None:
        learn = self.learn
        if self.training:
            self.losses.append((learn.stage_step, learn.loss))
            self.reached = replace(learn.train_state, first_epoch=learn.epoch, first_step=learn.iter + 1)
        self.steps += 1
        if self.steps == self.exchange_after:
            self._act_on(self.runtime.all_gather_object(self._status()))
        interval_steps = self.settings.interval_steps
        if self.training and interval_steps and learn.stage_step % interval_steps == 0:
            self.save()

    def after_epoch(self) -> None:
        learn, state = self.learn, self.learn.train_state
        is_last = learn.epoch + 1 == learn.n_epoch
        phase, epoch = (state.phase + 1, 0) if is_last else (state.phase, learn.epoch + 1)
        if state.is_stopped:
            phase, epoch = state.num_phases, 0
        self.reached = replace(state, phase=phase, first_epoch=epoch, first_step=0)
        self.save(learn.score)
        self._stop_on_signal(self.runtime.all_gather_object(self._status()))

    def finish(self) -> None:
        """Save after the last phase, and wait until it is on disk; stop if a signal has arrived meanwhile. Collective."""
        # even if the last fit was cancelled
        self.reached = replace(self.reached, phase=self.reached.num_phases, first_epoch=0, first_step=0)
        self.save()
        self.writer.wait()
        self._stop_on_signal(self.runtime.all_gather_object(self._status()))

    def save(self, score: float | None = None) -> None:
        """Save the progress reached, unless it is already saved. Collective; the disk is written in the background."""
        if self.saved == self.reached:
            return
        with self.runtime.step_timer.checkpoint():
            self._save(score)

    def _exchange_after_next_step(self) -> None:
        """Exchange after the next step, because the time of the coming steps is unknown."""
        self.steps, self.exchange_after, self.since = 0, 1, time.perf_counter()

    def _save(self, score: float | None) -> None:
        started = time.perf_counter()
        if not self.state.is_finite():
            self._refuse(self.reached.stage_step, "a weight")
        tensors, state = self.state.capture(self.reached)
        if self.runtime.is_main:
            state |= {"wandb_run_id": self.tracker.run_id, **self.metadata}
            self.writer.write(Checkpoint(tensors, state, self.tracker.lines, score))
        self.saved = self.reached
        self.last_saved = time.perf_counter()
        self.stalls.append(self.last_saved - started)

    def _status(self) -> RankStatus:
        now = time.perf_counter()
        minutes = self.settings.interval_minutes
        return RankStatus(
            signal=self.shutdown.signal.name if self.shutdown.signal else None,
            bad_step=self._bad_step(),
            is_due=minutes is not None and now - self.last_saved >= minutes * 60,
            seconds=(now - self.since) / max(self.steps, 1),
        )

    def _bad_step(self) -> int | None:
        """Return the first bad step of those copied before the last exchange; on a CPU also of those since then."""
        if self.runtime.device.type == "cpu":
            self._copy_losses()
        copied, self.copied = self.copied, []
        self._copy_losses()
        pairs = [pair for steps, finite in copied for pair in zip(steps, finite.read(), strict=True)]
        return next((step for step, is_finite in pairs if not is_finite), None)

    def _copy_losses(self) -> None:
        """Launch the copy that the next exchange reads, so that it does not wait for the GPU."""
        if self.losses:
            finite = torch.stack([loss for _, loss in self.losses]).isfinite()
            self.copied.append(([step for step, _ in self.losses], HostCopy(finite)))
        self.losses = []

    def _act_on(self, statuses: list[RankStatus]) -> None:
        """Act on the status of all ranks, the same on each rank."""
        self._refuse_bad_losses(statuses)
        self._stop_on_signal(statuses)
        if statuses[0].is_due and self.training:
            self.save()
        seconds = max(status.seconds for status in statuses)
        self.steps, self.since = 0, time.perf_counter()
        steps = int(SECONDS_BETWEEN_EXCHANGES / max(seconds, 1e-9))
        self.exchange_after = max(1, min(MAX_STEPS_BETWEEN_EXCHANGES, steps))

    def _stop_on_signal(self, statuses: list[RankStatus]) -> None:
        signal = next((status.signal for status in statuses if status.signal is not None), None)
        if signal is None:
            return
        self.save()
        self.writer.wait()
        last, is_saved = self.runtime.broadcast_object((self.writer.last, self.writer.error is None))
        where = f"{self.learn.stage} is saved in {last}" if is_saved else f"the last good checkpoint is {last}"
        raise mark_collective(
            ResumableInterrupt(f"stopped by {signal} after step {self.learn.stage_step}: {where}; start again to resume")
        )

    def _refuse_bad_losses(self, statuses: list[RankStatus]) -> None:
        bad_steps = [status.bad_step for status in statuses if status.bad_step is not None]
        if bad_steps:
            self._refuse(min(bad_steps), "the training loss")

    def _refuse(self, step: int, what: str) -> None:
        learn, phase = self.learn, self.learn.train_state.phase
        learn.tracking.write_pending()
        self.writer.wait()
        last = self.runtime.broadcast_object(self.writer.last)
        kept = f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"
        raise mark_collective(
            UserError(
                f"{learn.stage} phase {phase + 1} epoch {learn.epoch + 1}: {what} is NaN or inf at step {step}; {kept}. "
                f"Lower the phase's lr, set {learn.stage}.grad_clip, or try runtime.precision=fp32, and start over with "
                f"--fresh"
            )
        )
