"""All stages, one after the other; what is done already is not done again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from ulmfit_dist.stages.classifier import check_classifier, train_classifier
from ulmfit_dist.stages.final_scores import score_test_split
from ulmfit_dist.stages.lm import lm_loaders, train_lm
from ulmfit_dist.stages.plan import describe_plan, make_plan
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

TRAIN = {"lm": train_lm, "classifier": train_classifier}
CHECKS = {"lm": lm_loaders, "classifier": check_classifier}
"""What raises for input that a stage cannot be trained on."""

VALID_IS_TEST = (
    "the valid split is the one named test: what is selected, or stopped, by its figures was chosen on the "
    "documents that they report"
)


def run(config: Config, runtime: Runtime, fresh: bool = False, stages: Sequence[str] | None = None) -> None:
    """Prepare, train the language model, train the classifier; all inputs are checked before the first step.

    What is done is not done again, and what was begun goes on from its newest checkpoint.

    Args:
        fresh: start over.
        stages: which to train; None: those that the config has.

    Raises:
        UserError: wrong input, or a stage that was trained, or begun, with another config.
        Interrupted: a signal has asked to stop; all is saved.
    """
    stages = stages or config.stages
    with runtime.fail_together():
        tracker = Tracker(config, runtime)
    started = time.perf_counter()
    store = prepare(config, runtime)
    tracker.finish_stage("prepare", time.perf_counter() - started)
    with _only_one(tracker, runtime) as told:
        tracker.fresh = fresh = fresh and not _has_begun(config, runtime, stages[0])
        done: dict[str, bool] = {}
        found: dict[str, ResumePoint | None] = {}
        for stage in stages:
            is_open = not fresh and all(done.values())  # a stage on one that is to be trained is to be trained, too
            done[stage], found[stage] = _look(config, runtime, stage, store) if is_open else (False, None)
        with runtime.fail_together():
            for stage in stages:
                CHECKS[stage](config, runtime, store)
        _say_precision(config, runtime)
        if valid_is_test(config):
            logger.warning(VALID_IS_TEST)
        plan = make_plan(config, runtime, store, found, done)
        for line in describe_plan(plan, config, runtime, done):
            logger.info(line)
        if "classifier" in stages:
            _measure_baseline(config, runtime, store, tracker)
        for stage in stages:
            if done[stage]:
                logger.debug(f"{stage}: done already, in {config.run_dir / stage} (--fresh trains it again)")
                tracker.show(stage)
            else:
                TRAIN[stage](config, runtime, store, tracker, found[stage], plan.clock(stage))
        if "classifier" in stages:
            score_test_split(config, runtime, store, tracker)
        told += _report(config.run_dir) if runtime.is_main else []
    if "classifier" in stages and runtime.is_main:
        for line in describe_standing(tracker.summary, config):
            runtime.print(line)


def run_stage(config: Config, runtime: Runtime, stage: str, fresh: bool = False) -> None:
    """One stage alone: from its checkpoint on if it was begun, else anew.

    Args:
        fresh: anew in any case.
    """
    with runtime.fail_together():
        tracker = Tracker(config, runtime)
    store = prepare(config, runtime)
    with runtime.fail_together():
        if stage == "classifier" and config.classifier.encoder is None:
            is_exported(config, "lm", store)
    with _only_one(tracker, runtime):
        tracker.fresh = fresh = fresh and not _has_begun(config, runtime, stage)
        found = None if fresh else find_checkpoint(config, runtime, stage)
        if found is not None and _is_over(config, runtime, stage, found):
            found = None
        with runtime.fail_together():
            if found is not None:
                found.check(config, stage, store)
        _say_precision(config, runtime)
        TRAIN[stage](config, runtime, store, tracker, found)


def _measure_baseline(config: Config, runtime: Runtime, store: TokenStore, tracker: Tracker) -> None:
    if not config.classifier.baseline:
        tracker.set_baseline(None)
        return
    from ulmfit_dist.stages.baseline import measure_baseline  # scikit-learn takes a second to import

    measure_baseline(config, runtime, store, tracker)


def _say_precision(config: Config, runtime: Runtime) -> None:
    name, named = runtime.precision, runtime.launch.mixed_precision
    if named is not None:
        logger.debug(f"precision: {name} ({named.source})")
    elif config.runtime.precision == "auto":
        logger.debug(f"precision: {name}, chosen for this machine")
    for line in runtime.launch.describe():
        logger.debug(line)


def is_exported(config: Config, stage: str, store: TokenStore) -> bool:
    """Whether the run has this stage's model. Raises UserError if it was trained with another config or other data."""
    folder = config.run_dir / stage
    if not (folder / WEIGHTS).is_file():
        return False
    exported = read_bundle(folder)
    then = exported.training["data_fingerprint"]
    changed = differences(stage, config, to_dict(exported.config), store.fingerprint, then)
    if changed:
        raise UserError(
            f"{folder} was trained with another {', '.join(changed)}: train again with --fresh, or give the run "
            f"another name, such as name={config.name}-2"
        )
    return True


def _has_begun(config: Config, runtime: Runtime, stage: str) -> bool:
    """Whether a job that was started again has begun a stage before, so that --fresh is done with. Collective."""
    found = find_checkpoint(config, runtime, stage) if runtime.is_restart else None
    return found is not None and bool(found.state.get("job") == runtime.job)


def _look(config: Config, runtime: Runtime, stage: str, store: TokenStore) -> tuple[bool, ResumePoint | None]:
    """Whether a stage is done, and the checkpoint to go on from where it is not. Collective."""
    found = find_checkpoint(config, runtime, stage)
    done = False
    if found is None or _is_over(config, runtime, stage, found):
        with runtime.fail_together():
            done = runtime.is_main and is_exported(config, stage, store)
        done = runtime.broadcast_object(done)
    with runtime.fail_together():
        if found is not None and not done:
            found.check(config, stage, store)
    return done, None if done else found


def _is_over(config: Config, runtime: Runtime, stage: str, found: ResumePoint) -> bool:
    """Whether the training of a checkpoint has come to its end, and to the model in the run directory. Collective."""
    folder, is_over = config.run_dir / stage, False
    with runtime.fail_together():
        if runtime.is_main and found.is_end and (folder / WEIGHTS).is_file():
            is_over = found.is_of(read_bundle(folder))
    return runtime.broadcast_object(is_over)


@contextmanager
def _only_one(tracker: Tracker, runtime: Runtime) -> Iterator[list[str]]:
    """Be the only one that works in the run directory; at the end close the tracker, and say what has come of it.

    Gives a list for lines to be said then.
    """
    told: list[str] = []
    try:
        with runtime.fail_together():
            tracker.lock()
        yield told
    except ResumableInterrupt:
        with signals.saved():
            tracker.close(RESUMABLE)
        raise
    except BaseException:
        tracker.close(FAILED)
        raise
    tracker.conclude([*told, *tracker.close()])


def _report(run: Path) -> list[str]:
    """Write the run's report; a run is done without one, too."""
    from ulmfit_dist.report.page import write_report

    try:
        return [f"report: {write_report([run])}"]
    except Exception as error:
        logger.warning(f"no report of {run}: {type(error).__name__}: {error}")
        return []
