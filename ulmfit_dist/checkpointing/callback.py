"""When to save, and when to stop: decided by all ranks together, between two steps.

About once a second the ranks tell each other what each has seen: a signal, a loss that is no number; and rank 0 whether the
time for a checkpoint has come. So all save, or stop, after the same step, and a step in between costs no exchange. How many
steps make up that second is agreed upon as well. On a GPU a vote reads the losses that were copied at the vote before: no
training step waits for the device.
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
from ulmfit_dist.training.train_state import RecipePosition
from ulmfit_dist.utils.host_copy import HostCopy

SECONDS_BETWEEN_VOTES = 0.5
MOST_STEPS_BETWEEN_VOTES = 50


@dataclass(frozen=True)
class RankStatus:
    """What one rank has seen since the last vote.

    Attributes:
        signal: name of the signal that asks it to stop.
        bad_step: first step whose loss was no finite number.
        is_time: whether a checkpoint is due.
        seconds: time of a step.
    """

    signal: str | None
    bad_step: int | None
    is_time: bool
    seconds: float


class CheckpointCallback(Callback):
    """Saves every so often, at the end of each epoch, and when the run is asked to stop.

    Args:
        settings: how often.
        state: of the learner.
        writer: where to.
        tracker: of the run: its lines so far, and W&B's run id, are saved as well.
        stop: whether this process is asked to stop.
        facts: what else is to be found in state.json.
        begin: where this process began.
        num_phases: of the recipe.
    """

    order = 90  # after all others, so that what they add up is that of the finished step

    def __init__(
        self,
        settings: CheckpointConfig,
        state: LearnerStateDict,
        writer: AsyncCheckpointWriter,
        tracker: Tracker,
        stop: ShutdownRequest,
        facts: dict[str, object],
        begin: RecipePosition,
        num_phases: int,
    ):
        self.settings, self.state, self.writer, self.tracker, self.stop = settings, state, writer, tracker, stop
        self.runtime: Runtime = state.runtime
        self.facts, self.reached, self.num_phases = facts, begin, num_phases
        self.saved = begin if writer.last is not None else None
        self.stalls: list[float] = []
        self.losses: list[tuple[int, torch.Tensor]] = []
        self.sent: list[tuple[list[int], HostCopy]] = []  # steps, and whether their losses are finite
        self.last_saved = time.perf_counter()
        self._vote_next()

    def before_train(self) -> None:
        self._vote_next()

    def after_train(self) -> None:
        self._send_losses()
        self._refuse_bad_losses(self.runtime.all_gather_object(self._vote()))  # before a validation that would be in vain

    def before_validate(self) -> None:
        self._vote_next()

    def after_batch(self) -> None:
        learn = self.learn
        if self.training:
            self.losses.append((learn.stage_step, learn.loss))
            self.reached = RecipePosition(learn.phase, learn.epoch, learn.iter + 1, learn.stage_step)
        self.steps += 1
        if self.steps == self.vote_after:
            self._act_on(self.runtime.all_gather_object(self._vote()))
        interval_steps = self.settings.interval_steps
        if self.training and interval_steps and learn.stage_step % interval_steps == 0:
            self.save()

    def after_epoch(self) -> None:
        learn = self.learn
        is_last = learn.epoch + 1 == learn.n_epoch
        phase, epoch = (learn.phase + 1, 0) if is_last else (learn.phase, learn.epoch + 1)
        if learn.is_stopped:
            phase, epoch = self.num_phases, 0
        self.reached = RecipePosition(phase, epoch, 0, learn.stage_step)
        self.save(learn.score)
        self._stop_if_asked(self.runtime.all_gather_object(self._vote()))

    def finish(self) -> None:
        """After the last phase: come back when its checkpoint is on the disk, or stop if that was asked for meanwhile."""
        self.reached = replace(self.reached, phase=self.num_phases, epoch=0, step=0)  # whichever way the last fit has ended
        self.save()
        self.writer.wait()
        self._stop_if_asked(self.runtime.all_gather_object(self._vote()))

    def save(self, score: float | None = None) -> None:
        """Save where training stands, unless that is saved already. Collective; the disk's part goes on behind."""
        if self.saved == self.reached:
            return
        with self.runtime.step_timer.checkpoint():
            self._save(score)

    def _vote_next(self) -> None:
        """Vote after the next step: how long the coming ones take is not known yet."""
        self.steps, self.vote_after, self.since = 0, 1, time.perf_counter()

    def _save(self, score: float | None) -> None:
        started = time.perf_counter()
        if not self.state.is_finite():
            self._refuse(self.reached.stage_step, "a weight")
        tensors, state = self.state.capture(self.reached)
        if self.runtime.is_main:
            state |= {"stage": self.learn.stage, "wandb_run_id": self.tracker.run_id, **self.facts}
            self.writer.write(Checkpoint(tensors, state, self.tracker.lines, score))
        self.saved = self.reached
        self.last_saved = time.perf_counter()
        self.stalls.append(self.last_saved - started)

    def _vote(self) -> RankStatus:
        now = time.perf_counter()
        minutes = self.settings.interval_minutes
        return RankStatus(
            signal=self.stop.signal.name if self.stop.signal else None,
            bad_step=self._bad_step(),
            is_time=minutes is not None and now - self.last_saved >= minutes * 60,
            seconds=(now - self.since) / max(self.steps, 1),
        )

    def _bad_step(self) -> int | None:
        """The first bad step of those that were known at the last vote; on a CPU also of those since then."""
        if self.runtime.device.type == "cpu":
            self._send_losses()
        sent, self.sent = self.sent, []
        self._send_losses()
        pairs = [pair for steps, finite in sent for pair in zip(steps, finite.read(), strict=True)]
        return next((step for step, is_finite in pairs if not is_finite), None)

    def _send_losses(self) -> None:
        """Launch the copy of what the next vote reads, so that it waits for no GPU."""
        if self.losses:
            finite = torch.stack([loss for _, loss in self.losses]).isfinite()
            self.sent.append(([step for step, _ in self.losses], HostCopy(finite)))
        self.losses = []

    def _act_on(self, votes: list[RankStatus]) -> None:
        """Do what the ranks have come to. Each sees the same votes, and so does the same."""
        self._refuse_bad_losses(votes)
        self._stop_if_asked(votes)
        if votes[0].is_time and self.training:
            self.save()
        seconds = max(vote.seconds for vote in votes)
        self.steps, self.since = 0, time.perf_counter()
        self.vote_after = max(1, min(MOST_STEPS_BETWEEN_VOTES, int(SECONDS_BETWEEN_VOTES / max(seconds, 1e-9))))

    def _stop_if_asked(self, votes: list[RankStatus]) -> None:
        signal = next((vote.signal for vote in votes if vote.signal is not None), None)
        if signal is None:
            return
        self.save()
        self.writer.wait()
        last, is_saved = self.runtime.broadcast_object((self.writer.last, self.writer.error is None))
        where = f"{self.learn.stage} is saved in {last}" if is_saved else f"the last good checkpoint is {last}"
        raise mark_collective(
            ResumableInterrupt(f"stopped by {signal} after step {self.learn.stage_step}: {where}; start again to go on")
        )

    def _refuse_bad_losses(self, votes: list[RankStatus]) -> None:
        bad_steps = [vote.bad_step for vote in votes if vote.bad_step is not None]
        if bad_steps:
            self._refuse(min(bad_steps), "the training loss")

    def _refuse(self, step: int, what: str) -> None:
        learn = self.learn
        learn.tracking.write_pending()
        self.writer.wait()
        last = self.runtime.broadcast_object(self.writer.last)
        kept = f"the last good checkpoint, {last}, is kept" if last else "there is no checkpoint before it"
        raise mark_collective(
            UserError(
                f"{learn.stage} phase {learn.phase + 1} epoch {learn.epoch + 1}: {what} is no finite number at step {step}; "
                f"{kept}. Lower the phase's lr, set {learn.stage}.grad_clip, or try runtime.precision=no, and start over "
                f"with --fresh"
            )
        )
