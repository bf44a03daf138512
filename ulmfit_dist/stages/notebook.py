"""Additions to a learner that a notebook trains: a printed row per epoch, and an export for the rest of the package.

`fit_one_cycle`, `freeze_to`, `unfreeze`, `validate`, `save`, `load`, `save_encoder` and `load_encoder` are fastai's own.
Trade-off: no checkpoints and no tracking; for these a config is trained by `train_lm` and `train_classifier`.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback

from ulmfit_dist.config.schema import Config, Phase
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.bundle import save_bundle
from ulmfit_dist.stages.calibrate import calibrate
from ulmfit_dist.stages.run_directories import check_free_for_training
from ulmfit_dist.stages.stage import STAGES, Stage
from ulmfit_dist.tracking.console import EpochTable
from ulmfit_dist.training.callbacks.order import CallbackOrder
from ulmfit_dist.training.learner import AnyLearner, DistributedLearner
from ulmfit_dist.training.train_steps import ClassifierLearner
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


class EpochTableCallback(Callback):
    """Prints a row for each epoch, as a run does; each call of a `fit` counts as a phase.

    Args:
        runtime: of this rank; only rank 0 prints.
        stage: stage of the learner.
        target: target of the classifier, which selects the columns.
    """

    order, run_valid = CallbackOrder.EPOCH_TABLE, False

    def __init__(self, runtime: Runtime, stage: Stage, target: str):
        self.runtime, self.stage, self.phases = runtime, stage, list[Phase]()
        self.table = EpochTable(stage.name, self.phases, target)
        self.seconds = 0.0  # training time of the epoch; 0 in a validation without training

    def before_train(self) -> None:
        if self.learn.epoch == 0:
            self.phases.append(Phase(self.learn.n_epoch))
            logger.info(self.table.header())
        self.started, self.trained = time.perf_counter(), 0
        self.losses = torch.zeros(2, device=self.learn.dls.device)  # sum and count

    def after_batch(self) -> None:
        batch = self.learn.micro_batches[0]
        self.losses += torch.stack([self.learn.loss.float(), torch.ones_like(self.learn.loss).float()])
        self.trained += batch.global_tokens if self.stage.unit == "tokens" else batch.global_rows

    def after_train(self) -> None:
        self.seconds = time.perf_counter() - self.started

    def after_epoch(self) -> None:
        if self.seconds == 0:
            return
        total, count = self.runtime.all_reduce_sum(self.losses).tolist()
        figures = {"train_loss": total / max(count, 1), f"{self.stage.unit}_per_second": self.trained / self.seconds}
        figures |= {**self.learn.valid_metrics, "epoch_seconds": time.perf_counter() - self.started}
        epoch = sum(phase.epochs for phase in self.phases[:-1]) + self.learn.epoch + 1
        line: dict[str, Any] = {"phase": len(self.phases) - 1, "epoch": epoch}
        logger.info(self.table.row(line | {f"{self.stage.name}/{name}": value for name, value in figures.items()}))
        self.seconds = 0.0


def prepare_for_notebook(learner: AnyLearner, config: Config, store: TokenStore, runtime: Runtime) -> AnyLearner:
    """Return a stage's learner with printed epochs, the run directory as its path, and `export`."""
    stage = STAGES[learner.stage]
    learner.path = config.run_dir
    learner.exporter = partial(_export, learner, config, store, runtime)
    learner.add_cb(EpochTableCallback(runtime, stage, config.classifier.target))
    return learner


def _export(learner: DistributedLearner, config: Config, store: TokenStore, runtime: Runtime, folder: Path | None) -> Path:
    with runtime.fail_together():
        if folder is None:
            check_free_for_training(config)
    folder = config.run_dir / learner.stage if folder is None else Path(folder)
    if isinstance(learner, ClassifierLearner) and config.classifier.temperature_scaling:
        calibrate(learner, runtime)
    training = {
        "data_fingerprint": store.fingerprint,
        "world_size": runtime.world_size,
        "in_notebook": True,
        "metrics": learner.valid_metrics,
        "precision": runtime.precision,
    }
    with runtime.fail_together():
        if runtime.is_main:
            save_bundle(folder, learner.model, config, store, STAGES[learner.stage].labels(learner), training)
    return folder
