"""All stages of a run, one after the other, from wherever an earlier start was stopped.

All inputs are checked before the first step. Trade-off: a completed stage is recognized by its exported model and its
config, so changing a key that it depends on is an error instead of a silent second training.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ulmfit_dist.checkpointing.compatibility import differences
from ulmfit_dist.checkpointing.resume import ResumePoint, find_checkpoint
from ulmfit_dist.config.loading import to_dict
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.splits import valid_is_test
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed import signals
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import FAILED, RESUMABLE, ResumableInterrupt, UserError
from ulmfit_dist.models.bundle import WEIGHTS, read_bundle
from ulmfit_dist.stages.baseline_figures import describe_standing
from ulmfit_dist.stages.context import RunContext
from ulmfit_dist.stages.estimate import StageEstimate
from ulmfit_dist.stages.final_scores import score_test_split
from ulmfit_dist.stages.plan import RunPlan, describe_plan, describe_plans, make_plan
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.run_directories import check_free_for_training
from ulmfit_dist.stages.stage import CLASSIFIER, STAGES, Stage
from ulmfit_dist.stages.train_stage import train_stage
from ulmfit_dist.tracking.run_lock import RunLock
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

VALID_IS_TEST = (
    "the valid split is the one named test: its metrics select the epoch, or stop the training, on the documents "
    "that they are reported on"
)


def run(
    config: Config,
    runtime: Runtime,
    fresh: bool = False,
    stages: Sequence[str] | None = None,
    scores_test: bool = True,
) -> None:
    """Prepare the texts, then train the language model and the classifier. Collective.

    Completed stages are skipped, and an interrupted one resumes from its newest checkpoint.

    Args:
        fresh: start over.
        stages: names of the stages to train; None: those that the config has.
        scores_test: score the test split at the end; False for a run that is one of several to choose from.

    Raises:
        UserError: wrong input, or a stage that was trained, or begun, with another config.
        ResumableInterrupt: a signal has stopped the run; all progress is saved.
    """
    with runtime.fail_together():
        check_free_for_training(config)
    selected = [STAGES[name] for name in stages or config.stages]
    has_classifier = CLASSIFIER in selected
    context = _prepare(config, runtime)
    tracker, store = context.tracker, context.store
    with exclusive(tracker, runtime) as messages:
        tracker.fresh = fresh = fresh and not _has_begun(config, runtime, selected[0])
        done, resume_points = _progress_of_stages(context, selected, fresh)
        with runtime.fail_together():
            for stage in selected:
                stage.check(config, runtime, store)
        _print_precision(config, runtime)
        if valid_is_test(config):
            logger.warning(VALID_IS_TEST)
        plan = make_plan(config, runtime, store, resume_points, done)
        for line in describe_plan(plan, config, runtime, done):
            logger.info(line)
        if has_classifier:
            _measure_baseline(context)
        for stage in selected:
            if done[stage.name]:
                folder = config.run_dir / stage.name
                logger.debug(f"{stage.name}: already trained: {folder} (--fresh trains it again)")
                tracker.show(stage.name)
            else:
                train_stage(context, stage, resume_points[stage.name], plan.clock(stage.name))
        if has_classifier:
            score_test_split(config, runtime, store, tracker, scores_test)
        messages += report(config.run_dir) if runtime.is_main else []
    if has_classifier and runtime.is_main:
        for line in describe_standing(tracker.summary, config):
            logger.info(line)


def plan_runs(name: str, configs: Sequence[Config], runtime: Runtime, store: TokenStore, fresh: bool) -> None:
    """Print the expected duration of several runs of the same size, and check the input of all stages. Collective.

    Args:
        name: name of what they belong to.
        fresh: they start over.
    """
    plans: dict[str, RunPlan] = {}
    estimates: dict[str, StageEstimate] = {}
    with ExitStack() as locks:
        for config in configs:
            selected = [STAGES[stage] for stage in config.stages]
            with runtime.fail_together():
                context = RunContext(config, runtime, store, Tracker(config, runtime))
                if runtime.is_main:
                    locks.enter_context(RunLock(config))  # looking for checkpoints removes unfinished ones
            starts_over = fresh and not _has_begun(config, runtime, selected[0])
            done, resume_points = _progress_of_stages(context, selected, starts_over)
            with runtime.fail_together():
                for stage in selected:
                    stage.check(config, runtime, store)
            plans[config.name] = make_plan(config, runtime, store, resume_points, done, estimates)
            estimates |= plans[config.name].estimates
    for line in describe_plans(name, plans):
        logger.info(line)


def run_stage(config: Config, runtime: Runtime, stage_name: str, fresh: bool = False) -> None:
    """Train one stage: resume it if it was interrupted, else from the beginning. Collective.

    Args:
        fresh: start over in any case.
    """
    stage = STAGES[stage_name]
    with runtime.fail_together():
        check_free_for_training(config)
    context = _prepare(config, runtime, is_timed=False)
    with runtime.fail_together():
        if (base := stage.base(config)) is not None:
            is_exported(config, base, context.store)
    with exclusive(context.tracker, runtime):
        context.tracker.fresh = fresh = fresh and not _has_begun(config, runtime, stage)
        resume_point = None if fresh else _find_checkpoint(config, runtime, stage)
        if resume_point is not None and _is_complete(config, runtime, stage, resume_point):
            resume_point = None
        with runtime.fail_together():
            if resume_point is not None:
                resume_point.check(config, stage.name, context.store)
        _print_precision(config, runtime)
        train_stage(context, stage, resume_point)


def is_exported(config: Config, stage: str, store: TokenStore) -> bool:
    """Return whether the run has this stage's model. Raises UserError if it was trained with another config or data."""
    folder = config.run_dir / stage
    if not (folder / WEIGHTS).is_file():
        return False
    bundle = read_bundle(folder)
    fingerprints = store.fingerprint, bundle.training["data_fingerprint"]
    changed = differences(stage, config, to_dict(bundle.config), *fingerprints, bundle.training.get("pseudo_labels"))
    if changed:
        raise UserError(
            f"{folder} was trained with another {', '.join(changed)}: train again with --fresh, or give the run "
            f"another name, such as name={config.name}-2"
        )
    return True


def _prepare(config: Config, runtime: Runtime, is_timed: bool = True) -> RunContext:
    """Open the run directory, and prepare the token store. Collective."""
    with runtime.fail_together():
        tracker = Tracker(config, runtime)
    started = time.perf_counter()
    store = prepare(config, runtime)
    if is_timed:
        tracker.finish_stage("prepare", time.perf_counter() - started)
    return RunContext(config, runtime, store, tracker)


def _measure_baseline(context: RunContext) -> None:
    if not context.config.classifier.baseline:
        context.tracker.set_baseline(None)
        return
    from ulmfit_dist.stages.baseline import measure_baseline  # scikit-learn takes a second to import

    measure_baseline(context.config, context.runtime, context.store, context.tracker)


def _print_precision(config: Config, runtime: Runtime) -> None:
    precision, named = runtime.precision, runtime.launch.mixed_precision
    if named is not None:
        logger.debug(f"precision: {precision} ({named.source})")
    elif config.runtime.precision == "auto":
        logger.debug(f"precision: {precision}, chosen for this machine")
    for line in runtime.launch.describe():
        logger.debug(line)


def _find_checkpoint(config: Config, runtime: Runtime, stage: Stage) -> ResumePoint | None:
    return find_checkpoint(config.checkpoints_dir, config.run_dir, stage.name, runtime)


def _has_begun(config: Config, runtime: Runtime, stage: Stage) -> bool:
    """Return whether a restarted job has already begun this stage, so that its --fresh has taken effect. Collective."""
    resume_point = _find_checkpoint(config, runtime, stage) if runtime.is_restart else None
    return resume_point is not None and bool(resume_point.state.get("job") == runtime.job)


def _progress_of_stages(
    context: RunContext, selected: Sequence[Stage], fresh: bool
) -> tuple[dict[str, bool], dict[str, ResumePoint | None]]:
    """Return by stage whether it is complete, and the checkpoint to resume it from if it is not. Collective."""
    done: dict[str, bool] = {}
    resume_points: dict[str, ResumePoint | None] = {}
    for stage in selected:
        is_open = not fresh and all(done.values())  # a stage after one that is trained again is trained again
        done[stage.name], resume_points[stage.name] = _progress(context, stage) if is_open else (False, None)
    return done, resume_points


def _progress(context: RunContext, stage: Stage) -> tuple[bool, ResumePoint | None]:
    """Return whether a stage is complete, and the checkpoint to resume it from if it is not. Collective."""
    config, runtime = context.config, context.runtime
    resume_point = _find_checkpoint(config, runtime, stage)
    done = False
    if resume_point is None or _is_complete(config, runtime, stage, resume_point):
        with runtime.fail_together():
            done = runtime.is_main and is_exported(config, stage.name, context.store)
        done = runtime.broadcast_object(done)
    with runtime.fail_together():
        if resume_point is not None and not done:
            resume_point.check(config, stage.name, context.store)
    return done, None if done else resume_point


def _is_complete(config: Config, runtime: Runtime, stage: Stage, resume_point: ResumePoint) -> bool:
    """Return whether the training of a checkpoint is complete and its model has been exported. Collective."""
    folder, is_complete = config.run_dir / stage.name, False
    with runtime.fail_together():
        if runtime.is_main and resume_point.train_state.is_finished and (folder / WEIGHTS).is_file():
            is_complete = resume_point.is_of(read_bundle(folder))
    return runtime.broadcast_object(is_complete)


@contextmanager
def exclusive(tracker: Tracker, runtime: Runtime) -> Iterator[list[str]]:
    """Lock the run directory; at the end close the tracker and print the outcome of the run.

    Yields a list of messages, which are printed at the end.
    """
    messages: list[str] = []
    try:
        with runtime.fail_together():
            tracker.lock()
        yield messages
    except ResumableInterrupt:
        with signals.saved():
            tracker.close(RESUMABLE)
        raise
    except BaseException:
        tracker.close(FAILED)
        raise
    tracker.conclude([*messages, *tracker.close()])


def report(run: Path) -> list[str]:
    """Write the run's report; an error in it is a warning, because the run itself is complete."""
    from ulmfit_dist.report.page import write_report

    try:
        return [f"report: {write_report([run])}"]
    except Exception as error:
        logger.warning(f"no report of {run}: {type(error).__name__}: {error}")
        return []
