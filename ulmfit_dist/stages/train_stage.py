"""The training of one stage: build, restore, fit, export.

Both stages share it; what differs is in their `Stage` (`stage.py`). Trade-off: all state that the four steps share is in one
object, `StageTraining`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit_dist.checkpointing.async_writer import AsyncCheckpointWriter
from ulmfit_dist.checkpointing.callback import CheckpointCallback
from ulmfit_dist.checkpointing.learner_state import LearnerStateDict
from ulmfit_dist.checkpointing.manager import CheckpointManager, CorruptCheckpointError, read_tensors, remove_stage, verify
from ulmfit_dist.checkpointing.resume import ResumePoint
from ulmfit_dist.config.loading import to_dict
from ulmfit_dist.data.batches import RankLoader
from ulmfit_dist.data.pseudo_labels import digest_of_pseudo_labels
from ulmfit_dist.distributed import signals
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.models.kernels import compile_kernels
from ulmfit_dist.models.pretrained import fetch
from ulmfit_dist.stages.calibrate import calibrate
from ulmfit_dist.stages.context import RunContext
from ulmfit_dist.stages.epoch_artifacts import compute_artifacts
from ulmfit_dist.stages.show_batch import show_first_batch
from ulmfit_dist.stages.stage import STAGES, Stage
from ulmfit_dist.training.callbacks.model_selection import EpochResult, ModelSelectionCallback
from ulmfit_dist.training.callbacks.progress import StageClock, StageProgressCallback
from ulmfit_dist.training.callbacks.timing import TimingCallback
from ulmfit_dist.training.callbacks.tracking import Tables, TrackingCallback, without_texts
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.training.schedule import run_phases
from ulmfit_dist.training.train_steps import ClassifierLearner
from ulmfit_dist.utils.environment import versions
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

FEW_STEPS = 5
"""Optimizer steps of an epoch below which the batch is probably too large by mistake."""
STORE_METADATA = ("fingerprint", "num_documents", "num_tokens", "vocab_size", "dropped")
"""Keys of a token store's meta.json that W&B records with a model."""


@dataclass(frozen=True)
class StageTraining:
    """A learner with the objects that record and save its training.

    Attributes:
        learner: with all callbacks but the one that saves checkpoints.
        state: captures and restores the learner.
        checkpoints: checkpoints of the stage.
        tracking: logs the fit.
        selection: selects the exported epoch.
        training_id: random identifier of this training, the same in its checkpoints and its exported model.
    """

    learner: DistributedLearner
    state: LearnerStateDict
    checkpoints: CheckpointManager
    tracking: TrackingCallback
    selection: ModelSelectionCallback
    training_id: str


def train_stage(
    context: RunContext, stage: Stage, resume_point: ResumePoint | None = None, clock: StageClock | None = None
) -> Path:
    """Train a stage and export its model to the folder of its name in the run directory. Collective.

    Args:
        resume_point: checkpoint to resume from; None deletes the checkpoints of an earlier attempt.
        clock: remaining time; None: one whose epochs have equal costs.

    Returns:
        The folder of the exported model.

    Raises:
        UserError: input that the stage cannot be trained on, or a checkpoint that does not fit.
        ResumableInterrupt: a signal has stopped the run; all progress is saved.
    """
    training = build(context, stage, resume_point, clock)
    if resume_point is not None:
        restore(training, resume_point, context.runtime)
    show_first_batch(context.config, context.runtime, context.store, training.learner)
    global_batch_size = stage.settings(context.config).global_batch_size
    warn_of_few_steps(stage.name, training.learner.dls.train, global_batch_size)
    fit(training, context, stage, resume_point)
    return export(training, context, stage)


def build(context: RunContext, stage: Stage, resume_point: ResumePoint | None, clock: StageClock | None) -> StageTraining:
    """Return the stage's learner with its callbacks, and start the stage in the tracker. Collective."""
    config, runtime, settings = context.config, context.runtime, stage.settings(context.config)
    fetch(stage.weights(config), runtime, config.model.backwards)
    with runtime.fail_together():
        learner = stage.build(config, runtime, context.store)
    checkpoints = CheckpointManager(config.checkpoints_dir, stage.name)
    _start(context, stage, checkpoints, resume_point)
    canonical_ranks = runtime.settings.canonical_ranks
    if canonical_ranks is not None and not learner.dls.train.shard.exact:
        logger.warning(
            f"ignoring runtime.canonical_ranks={canonical_ranks}: not a multiple of world size {runtime.world_size}"
        )
    for message in compile_kernels(runtime.device, learner.loss_func):
        logger.debug(message)
    tracking = TrackingCallback(
        context.tracker, stage.unit, lambda previous: compute_artifacts(learner, context.store, config, previous)
    )
    selection = ModelSelectionCallback(settings.early_stopping_patience, lambda: tracking.tables)
    clock = clock or StageClock([1.0] * sum(phase.epochs for phase in settings.phases))
    learner.add_cbs([tracking, StageProgressCallback(runtime, stage.unit, clock), TimingCallback(runtime), selection])
    runtime.reset_grad_scaler()
    state = LearnerStateDict(learner, runtime)
    if resume_point is None:
        training_id = runtime.broadcast_object(secrets.token_hex(8))
    else:
        training_id = resume_point.state["training_id"]
    return StageTraining(learner, state, checkpoints, tracking, selection, training_id)


def restore(training: StageTraining, resume_point: ResumePoint, runtime: Runtime) -> None:
    """Restore the learner from a checkpoint. Collective. Raises UserError if it does not fit."""
    tensors = resume_point.tensors(runtime)
    with runtime.fail_together():
        training.state.restore(tensors, resume_point.state)


def fit(training: StageTraining, context: RunContext, stage: Stage, resume_point: ResumePoint | None) -> None:
    """Train the remaining phases, with checkpoints. Collective."""
    settings = context.config.checkpoint
    last = None if resume_point is None else resume_point.path
    with signals.when_ready() as shutdown:
        writer = AsyncCheckpointWriter(training.checkpoints, settings.keep_latest, last)
        with context.runtime.fail_together():
            metadata = {"training_id": training.training_id, **_metadata(context), **_pseudo_labels(context)}
        callback = CheckpointCallback(settings, training.state, writer, context.tracker, shutdown, metadata)
        training.learner.add_cb(callback)
        callback.save()  # so that a training that replaces another resumes wherever it is killed
        run_phases(training.learner, stage.settings(context.config).phases)
        callback.finish()


def export(training: StageTraining, context: RunContext, stage: Stage) -> Path:
    """Export the model of the last, or the best, epoch; returns its folder. Collective."""
    config, runtime, store, tracker = context.config, context.runtime, context.store, context.tracker
    metrics, tables = _select_epoch(training, context, stage)
    if isinstance(training.learner, ClassifierLearner) and config.classifier.temperature_scaling:
        metrics |= calibrate(training.learner, runtime)
        tables = compute_artifacts(training.learner, store, config, {}) if runtime.is_main else tables
    folder = config.run_dir / stage.name
    with runtime.fail_together():
        tracker.finish_stage(stage.name, training.tracking.seconds, metrics, tables)
        for other in STAGES.values():
            if other.base(config) == stage.name:
                if runtime.is_main:  # its model starts from the one that is replaced
                    remove_stage(config.run_dir, config.checkpoints_dir, other.name)
                tracker.drop_stage(other.name)
        if runtime.is_main:
            metadata = {
                "training_id": training.training_id,
                "data_fingerprint": store.fingerprint,
                "world_size": runtime.world_size,
                "precision": runtime.precision,
                "metrics": metrics,
                **_pseudo_labels(context),
            }
            save_bundle(folder, training.learner.model, config, store, stage.labels(training.learner), metadata)
            tracker.save_model(stage.name, metadata, {key: store.meta[key] for key in STORE_METADATA if key in store.meta})
    return folder


def warn_of_few_steps(stage: str, train: RankLoader, global_batch_size: int) -> None:
    """Print a warning if the batch is so large that an epoch has few optimizer steps."""
    if (steps := len(train)) < FEW_STEPS:
        logger.warning(
            f"{stage}.global_batch_size={global_batch_size}: an epoch has {steps} optimizer step(s), too few to "
            f"learn from: lower it, or add epochs"
        )


def load_best_weights(training: StageTraining, runtime: Runtime) -> EpochResult | None:
    """Load the weights of the best epoch into the model; None if its checkpoint cannot be read. Collective."""
    best, learner = training.selection.best, training.learner
    assert best is not None  # a recipe has at least one epoch
    path = training.checkpoints.at(best.step)
    model, error = None, None
    if runtime.is_main:
        try:
            verify(path)
            model = read_tensors(path)["model"]
        except CorruptCheckpointError as damage:
            error = f"{path} cannot be read ({damage})"
    if (message := runtime.broadcast_object(error)) is not None:
        logger.warning(f"{message}: exporting the last epoch of {learner.stage} instead of epoch {best.number}")
        return None
    training.state.load_model(runtime.broadcast_tensors(model))
    figures = ", ".join(f"{name} {value:.4f}" for name, value in best.metrics.items())
    logger.info(f"{learner.stage}: exporting epoch {best.number} of {learner.stage_epoch}, the best: {figures}")
    return best


def _start(context: RunContext, stage: Stage, checkpoints: CheckpointManager, resume_point: ResumePoint | None) -> None:
    """Start the stage in the tracker, after the lines of the checkpoint; without one, delete old checkpoints. Collective."""
    runtime, tracker = context.runtime, context.tracker
    if resume_point is not None:
        world_size = resume_point.state["world_size"]
        logger.debug(f"{stage.name}: resumes from {resume_point.path}, written on {world_size} rank(s)")
    with runtime.fail_together():
        if resume_point is not None and runtime.is_main:
            tracker.start_stage(stage.name, resume_point.lines(), resume_point.state["wandb_run_id"])
        else:
            tracker.start_stage(stage.name)
        if resume_point is None and runtime.is_main:
            checkpoints.clear()


def _select_epoch(training: StageTraining, context: RunContext, stage: Stage) -> tuple[dict[str, float], Tables]:
    """Load the model of the epoch that is exported, and return its metrics and tables. Collective."""
    tracking = training.tracking
    metrics, tables = tracking.final_metrics(), tracking.tables
    if stage.settings(context.config).export_epoch != "best":
        return metrics, tables
    best = load_best_weights(training, context.runtime)
    if best is None:
        return metrics, tables
    if stage.has_epoch_tables:
        tables = best.tables if context.config.tracking.log_text else without_texts(best.tables)
    return metrics | best.metrics, tables


def _pseudo_labels(context: RunContext) -> dict[str, str]:
    """Return the digest of the pseudo-labels that the run trains on, as `pseudo_labels`; empty if it has none."""
    digest = digest_of_pseudo_labels(context.config)
    return {} if digest is None else {"pseudo_labels": digest}


def _metadata(context: RunContext) -> dict[str, Any]:
    """Return the keys of state.json that describe how the checkpoint was made."""
    return {
        "config": to_dict(context.config),
        "data_fingerprint": context.store.fingerprint,
        "world_size": context.runtime.world_size,
        "job": context.runtime.job,
        "versions": versions(),
    }
