"""What a learner has that a notebook trains by hand: rows of epochs, and an export that the rest of the package reads.

`fit_one_cycle`, `freeze_to`, `unfreeze`, `validate`, `save`, `load`, `save_encoder` and `load_encoder` are fastai's own.
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
from ulmfit_dist.tracking.console import EpochTable
from ulmfit_dist.training.learner import DistributedLearner, Stage
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


class EpochTableCallback(Callback):
    """Prints a row for each epoch, as a run does; each call of a `fit` is a phase."""

    order, run_valid = 80, False

    def __init__(self, runtime: Runtime, stage: str, target: str):
        self.runtime, self.phases = runtime, list[Phase]()
        self.table = EpochTable(stage, self.phases, target)
        self.seconds = 0.0  # that an epoch has trained; 0 in a validation alone

    def before_train(self) -> None:
        if self.learn.epoch == 0:
            self.phases.append(Phase(self.learn.n_epoch))
            logger.info(self.table.header())
        self.started, self.trained = time.perf_counter(), 0
        self.losses = torch.zeros(2, device=self.learn.dls.device)  # their sum, and how many

    def after_batch(self) -> None:
        batch = self.learn.micro_batches[0]
        self.losses += torch.stack([self.learn.loss.float(), torch.ones_like(self.learn.loss).float()])
        self.trained += batch.global_tokens if self.learn.stage == "lm" else batch.global_rows

    def after_train(self) -> None:
        self.seconds = time.perf_counter() - self.started

    def after_epoch(self) -> None:
        if self.seconds == 0:
            return
        total, count = self.runtime.all_reduce_sum(self.losses).tolist()
        unit = "tokens" if self.learn.stage == "lm" else "examples"
        figures = {"train_loss": total / max(count, 1), f"{unit}_per_second": self.trained / self.seconds}
        figures |= {**self.learn.valid_metrics, "epoch_seconds": time.perf_counter() - self.started}
        epoch = sum(phase.epochs for phase in self.phases[:-1]) + self.learn.epoch + 1
        line: dict[str, Any] = {"phase": len(self.phases) - 1, "epoch": epoch}
        logger.info(self.table.row(line | {f"{self.learn.stage}/{name}": value for name, value in figures.items()}))
        self.seconds = 0.0


def prepare_for_notebook(learner: Stage, config: Config, store: TokenStore, runtime: Runtime) -> Stage:
    """Make a stage's learner one for a notebook: it says what it does, and knows where its files go."""
    learner.path = config.run_dir
    learner.exporter = partial(_export, learner, config, store, runtime)
    learner.add_cb(EpochTableCallback(runtime, learner.stage, config.classifier.target))
    return learner


def _export(learner: DistributedLearner, config: Config, store: TokenStore, runtime: Runtime, folder: Path | None) -> Path:
    folder = config.run_dir / learner.stage if folder is None else Path(folder)
    labels = learner.dls.train.targets.names if learner.stage == "classifier" else None
    metrics = getattr(learner, "valid_metrics", {})
    training = {
        "data_fingerprint": store.fingerprint,
        "world_size": runtime.world_size,
        "in_notebook": True,
        "metrics": metrics,
    }
    training["precision"] = runtime.precision
    with runtime.fail_together():
        if runtime.is_main:
            save_bundle(folder, learner.model, config, store, labels, training)
    return folder
