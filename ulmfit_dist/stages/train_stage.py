"""What the two training stages share: checkpoints and tracking around the recipe, then the export."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from ulmfit_dist.checkpointing.async_writer import AsyncCheckpointWriter
from ulmfit_dist.checkpointing.callback import CheckpointCallback
from ulmfit_dist.checkpointing.learner_state import LearnerStateDict
from ulmfit_dist.checkpointing.manager import CheckpointManager, CorruptCheckpointError, read_tensors, remove_stage, verify
from ulmfit_dist.checkpointing.resume import ResumePoint
from ulmfit_dist.config.loading import to_dict
from ulmfit_dist.config.schema import Config, StageConfig
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed import signals
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.models.kernels import compile_kernels
from ulmfit_dist.stages.epoch_artifacts import compute_artifacts
from ulmfit_dist.stages.show_batch import show_first_batch
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.training.callbacks.model_selection import EpochResult, ModelSelectionCallback
from ulmfit_dist.training.callbacks.progress import StageClock, StageProgressCallback
from ulmfit_dist.training.callbacks.timing import TimingCallback
from ulmfit_dist.training.callbacks.tracking import TrackingCallback, without_texts
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.training.schedule import run_phases
from ulmfit_dist.training.train_state import START
from ulmfit_dist.utils.environment import versions
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

UNITS = {"lm": "tokens", "classifier": "examples"}
"""Units of the throughput, by stage."""
FEW_STEPS = 5
"""Of an epoch; with fewer, the batch is likely too large by mistake."""
FACTS_OF_TEXTS = ("fingerprint", "num_documents", "num_tokens", "vocab_size")
"""What W&B learns of a token store that a model was made from."""


def train_stage(
    learner: DistributedLearner,
    labels: list[str] | None,
    config: Config,
    runtime: Runtime,
    store: TokenStore,
    tracker: Tracker,
    found: ResumePoint | None,
    clock: StageClock | None,
) -> Path:
    """Run a stage's recipe and export its model to the folder of its name in the run directory.

    Args:
        learner: built, untrained.
        labels: class names; None for a language model.
        found: a checkpoint to go on from; without one, those of an earlier try are removed.
        clock: of the time that is left; None: one whose epochs have equal costs.

    Returns:
        The folder.

    Raises:
        Interrupted: a signal has asked to stop; all is saved.
    """
    stage = learner.stage
    settings, unit = getattr(config, stage), UNITS[stage]
    folder = CheckpointManager(config.checkpoints_dir, stage)
    if found is not None:
        logger.debug(f"{stage}: goes on from {found.path}, made on {found.state['world_size']} rank(s)")
    with runtime.fail_together():
        tracker.start_stage(stage, *((found.lines(), found.state["wandb_run_id"]) if found and runtime.is_main else ()))
        if found is None and runtime.is_main:
            folder.clear()
    if runtime.settings.canonical_ranks is not None and not learner.dls.train.shard.exact:
        logger.debug(
            f"runtime.canonical_ranks={runtime.settings.canonical_ranks} is set aside: it is no multiple of the ranks"
        )
    for message in compile_kernels(runtime.device, learner.loss_func):
        logger.debug(message)
    tracking = TrackingCallback(tracker, unit, lambda before: compute_artifacts(learner, store, config, before))
    selection = ModelSelectionCallback(settings, lambda: tracking.tables)
    clock = clock or StageClock([1.0] * sum(phase.epochs for phase in settings.phases))
    learner.add_cbs([tracking, StageProgressCallback(runtime, unit, clock), TimingCallback(runtime), selection])
    runtime.reset_grad_scaler()
    state, begin = LearnerStateDict(learner, runtime), START
    if found is not None:
        tensors = found.tensors(runtime)
        with runtime.fail_together():
            begin = state.restore(tensors, found.state)
    show_first_batch(config, runtime, store, learner)
    warn_of_few_steps(learner, settings)
    with signals.when_ready() as stop:
        writer = AsyncCheckpointWriter(folder, config.checkpoint.keep_latest, found.path if found else None)
        training_id = found.state["training_id"] if found else runtime.broadcast_object(secrets.token_hex(8))
        facts = {"training_id": training_id, **_facts(config, runtime, store)}
        num_phases = len(settings.phases)
        checkpoints = CheckpointCallback(config.checkpoint, state, writer, tracker, stop, facts, begin, num_phases)
        learner.add_cb(checkpoints)
        checkpoints.save()  # so that a training that replaces another is taken up wherever it is killed
        run_phases(learner, settings.phases, begin)
        checkpoints.finish()
    metrics, tables = tracking.final_metrics(), tracking.tables
    if (
        settings.export_epoch == "best"
        and (best := load_best_weights(selection, learner, state, folder, runtime)) is not None
    ):
        metrics |= best.metrics
        if stage == "classifier":  # a language model's samples are of all epochs
            tables = best.tables if config.tracking.log_text else without_texts(best.tables)
    with runtime.fail_together():
        tracker.finish_stage(stage, tracking.seconds, metrics, tables)
        if stage == "lm" and config.classifier.encoder is None:  # the classifier's encoder has been replaced
            if runtime.is_main:
                remove_stage(config.run_dir, config.checkpoints_dir, "classifier")
            tracker.drop_stage("classifier")
        if runtime.is_main:
            training = {"training_id": training_id, "data_fingerprint": store.fingerprint}
            training |= {"world_size": runtime.world_size, "precision": runtime.precision, "metrics": metrics}
            save_bundle(config.run_dir / stage, learner.model, config, store, labels, training)
            tracker.save_model(stage, training, {key: store.meta[key] for key in FACTS_OF_TEXTS})
    return config.run_dir / stage


def warn_of_few_steps(learner: DistributedLearner, settings: StageConfig) -> None:
    """Say so where a batch is so large that an epoch has hardly a step."""
    if (steps := len(learner.dls.train)) < FEW_STEPS:
        batch = f"{learner.stage}.global_batch_size={settings.global_batch_size}"
        logger.warning(f"{batch}: an epoch has {steps} step(s), which teach little: lower it, or add epochs")


def load_best_weights(
    selection: ModelSelectionCallback,
    learner: DistributedLearner,
    state: LearnerStateDict,
    folder: CheckpointManager,
    runtime: Runtime,
) -> EpochResult | None:
    """Give the learner's model the weights of the best epoch; None where they are no longer on the disk. Collective."""
    best, stage = selection.best, learner.stage
    assert best is not None  # a recipe has an epoch
    model, error = None, None
    if runtime.is_main:
        try:
            verify(folder.at(best.step))
            model = read_tensors(folder.at(best.step))["model"]
        except CorruptCheckpointError as damaged:
            error = f"{folder.at(best.step)} cannot be read ({damaged})"
    if (said := runtime.broadcast_object(error)) is not None:
        logger.warning(f"{said}: the model of {stage}'s last epoch is exported, not that of epoch {best.number}")
        return None
    state.load_model(runtime.broadcast_tensors(model))
    figures = ", ".join(f"{name} {value:.4f}" for name, value in best.metrics.items())
    logger.info(f"{stage}: exported is the model of epoch {best.number} of {learner.stage_epoch}, the best: {figures}")
    return best


def _facts(config: Config, runtime: Runtime, store: TokenStore) -> dict[str, Any]:
    """What a checkpoint says of its making."""
    return {
        "config": to_dict(config),
        "data_fingerprint": store.fingerprint,
        "world_size": runtime.world_size,
        "job": runtime.job,
        "versions": versions(),
    }
