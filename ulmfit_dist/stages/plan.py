"""Plan of a run: steps, parameters and expected duration of each stage, printed before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ulmfit_dist.checkpointing.resume import ResumePoint
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages.estimate import StageEstimate, estimate_stage
from ulmfit_dist.tracking.console import plan_row
from ulmfit_dist.tracking.tracker import device_name
from ulmfit_dist.training.callbacks.progress import StageClock
from ulmfit_dist.utils.formatting import describe_processes, duration


@dataclass(frozen=True)
class RunPlan:
    """Unfinished stages of a run with their estimates.

    Attributes:
        estimates: estimates of the unfinished stages, in their order.
        left: expected remaining seconds by stage.
    """

    estimates: dict[str, StageEstimate] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)

    def clock(self, stage: str) -> StageClock:
        """Return the clock of an unfinished stage."""
        estimate = self.estimates[stage]
        following = list(self.estimates)[list(self.estimates).index(stage) + 1 :]
        later = sum(self.left[name] for name in following) + estimate.test_seconds
        return StageClock(estimate.seconds if sum(estimate.seconds) else estimate.steps, later)


def make_plan(
    config: Config,
    runtime: Runtime,
    store: TokenStore,
    resume_points: Mapping[str, ResumePoint | None],
    done: Mapping[str, bool],
    known: Mapping[str, StageEstimate] | None = None,
) -> RunPlan:
    """Estimate the unfinished stages. Collective; takes some seconds for long stages.

    Args:
        resume_points: checkpoint to resume from, by stage.
        done: True for finished stages, by stage in their order.
        known: estimates of another run of the same size, by stage, which are not measured again.
    """
    known = known or {}
    unfinished = [stage for stage, is_done in done.items() if not is_done]
    estimates = {stage: known.get(stage) or estimate_stage(config, runtime, store, stage) for stage in unfinished}
    left = {stage: estimate.total_seconds for stage, estimate in estimates.items()}
    for stage, estimate in estimates.items():
        if (checkpoint := resume_points.get(stage)) is not None:
            state = checkpoint.train_state
            epoch = len(estimate.steps) if state.is_finished else state.stage_epoch
            finished_share = state.first_step / estimate.steps[epoch] if epoch < len(estimate.steps) else 0.0
            left[stage] = sum(estimate.seconds[epoch:]) - finished_share * sum(estimate.seconds[epoch : epoch + 1])
    return RunPlan(estimates, left)


def describe_plans(name: str, plans: Mapping[str, RunPlan]) -> Iterator[str]:
    """Yield the lines of a table of several runs, with the expected duration of each and of all, by run name."""
    totals = {run: sum(plan.left.values()) for run, plan in plans.items()}
    yield f"plan of {name}: {len(plans)} runs, then their mean"
    for run, plan in plans.items():
        yield f"{run:<40}{_expected(plan, totals[run]):>14}".rstrip()
    if sum(totals.values()):
        yield f"{'all':<40}{duration(sum(totals.values())):>14}"
    yield ""


def _expected(plan: RunPlan, seconds: float) -> str:
    if not plan.estimates:
        return "done"
    return duration(seconds) if seconds else "seconds"


def describe_plan(plan: RunPlan, config: Config, runtime: Runtime, done: Mapping[str, bool]) -> Iterator[str]:
    """Yield the lines of the plan's table."""
    precision = runtime.precision
    where = f"{describe_processes(runtime.world_size)}, {device_name(runtime.device)}, {precision}"
    yield f"plan of {config.name}: {where}"
    yield plan_row("stage", "epochs", "steps", "parameters", "expected")
    for stage, is_done in done.items():
        if is_done:
            yield plan_row(stage, "done", "", "", "")
            continue
        estimate = plan.estimates[stage]
        epochs, steps = f"{len(estimate.steps):,}", f"{sum(estimate.steps):,}"
        seconds = plan.left[stage]
        yield plan_row(stage, epochs, steps, f"{estimate.num_parameters:,}", duration(seconds) if seconds else "seconds")
    if len(plan.left) > 1 and (total := sum(plan.left.values())):
        yield plan_row("all", "", "", "", duration(total))
    yield ""
