"""Expected duration of a training stage, measured on a few of its own steps.

A temporary learner of the stage trains a few steps on the ranks and with the loaders of the run. The cost of a step is
assumed proportional to the positions that it computes: rows times tokens, padding included, times the passes of the losses
of `classifier.unlabelled`. Trade-off: measuring takes
several seconds, so short stages are not measured, and their duration is reported as zero.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException

from ulmfit_dist.config.schema import ClassifierConfig, Config, UnlabelledConfig
from ulmfit_dist.data.classifier_loader import ClassifierLoader
from ulmfit_dist.data.lm_loader import LMLoader
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.kernels import compile_kernels
from ulmfit_dist.stages.classifier import classifier_learner
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.training.callbacks.order import CallbackOrder
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

MIN_WORK = 2e12
"""Minimum floating-point operations of a stage that is measured: some seconds on two CPU cores."""
FORWARD_SHARE = 1 / 3
"""Cost of a position without gradient relative to one with gradient: one pass instead of three."""
BUDGET_SECONDS = 2.0
"""Timed seconds after which no further step is timed; the first step is not counted."""
MAX_STEPS = 12
"""Maximum number of timed steps; the first step is not counted."""


@dataclass(frozen=True)
class StageEstimate:
    """Steps, parameters and expected duration of a stage.

    Attributes:
        stage: "lm" or "classifier".
        num_parameters: parameters of the model.
        steps: optimizer steps of each epoch, in the order of the phases.
        seconds: expected duration of each epoch, training and validation; zeros where the stage is not measured.
        test_seconds: expected duration of scoring the test split.
    """

    stage: str
    num_parameters: int
    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    test_seconds: float = 0.0

    @property
    def total_seconds(self) -> float:
        """Expected duration of the stage."""
        return sum(self.seconds) + self.test_seconds


@dataclass(frozen=True)
class Work:
    """Positions of an epoch: trained on, read without gradient, validated on, and of the test split."""

    train: float
    read: float
    valid: float
    test: float
    steps: int


@dataclass(frozen=True)
class CorpusSize:
    """Size of a corpus whose store holds a sample of it.

    Attributes:
        scale: documents of the corpus over documents in the store.
        vocab_size: tokens in the vocabulary of the corpus; None: the store's.
    """

    scale: float = 1.0
    vocab_size: int | None = None


@dataclass(frozen=True)
class TimingLimits:
    """Limits of the measurement of a stage.

    Attributes:
        budget_seconds: timed seconds after which no further step is timed.
        min_work: floating-point operations up to which the stage is not measured; None: `MIN_WORK`.
    """

    budget_seconds: float = BUDGET_SECONDS
    min_work: float | None = None


def estimate_stage(
    config: Config,
    runtime: Runtime,
    store: TokenStore,
    stage: str,
    corpus: CorpusSize | None = None,
    limits: TimingLimits | None = None,
) -> StageEstimate:
    """Time some steps of a stage and estimate the duration of all. Collective; no state of the run changes.

    Args:
        stage: "lm" or "classifier".
        corpus: size of the corpus, where the store holds only a sample of it; None: the store holds all of it.
        limits: None: the defaults.

    Raises:
        UserError: the stage cannot be trained on this input.
    """
    corpus, limits = corpus or CorpusSize(), limits or TimingLimits()
    bare = replace(config, **{stage: replace(getattr(config, stage), callbacks=[])})
    with _runtime_restored(runtime):
        with runtime.fail_together():
            learner = _make_learner(bare, runtime, _with_vocab(store, corpus.vocab_size), stage)
        work = _work(config, store, learner, corpus.scale)
        num_parameters = sum(parameter.numel() for parameter in learner.model.parameters())
        phases = getattr(config, stage).phases
        per_position = dict.fromkeys((phase.freeze_to for phase in phases), 0.0)
        operations = _operations(learner, stage) * work.train * sum(phase.epochs for phase in phases)
        if operations > (MIN_WORK if limits.min_work is None else limits.min_work):
            timer = partial(StepTimer, runtime, limits.budget_seconds, config.classifier)
            per_position = _measure(learner, runtime, list(per_position), timer)
    steps, seconds = [], []
    trained = max(per_position.values())
    for phase in phases:
        epoch = work.train * per_position[phase.freeze_to] + (work.read + work.valid) * FORWARD_SHARE * trained
        steps += [work.steps] * phase.epochs
        seconds += [epoch] * phase.epochs
    test = work.test * FORWARD_SHARE * trained if stage == "classifier" else 0.0
    return StageEstimate(stage, num_parameters, tuple(steps), tuple(seconds), test)


class StepTimer(Callback):
    """Time the steps of a fit and end it after the same step on all ranks."""

    order, run_valid = CallbackOrder.STEP_TIMER, False

    def __init__(self, runtime: Runtime, budget_seconds: float, settings: ClassifierConfig):
        self.runtime, self.budget_seconds, self.settings = runtime, budget_seconds, settings
        self.seconds: list[float] = []
        self.positions: list[float] = []

    def before_batch(self) -> None:
        self.started = self._now()

    def after_batch(self) -> None:
        self.seconds.append(self.runtime.broadcast_object(self._now() - self.started))
        self.positions.append(sum(_positions_of_step(self.learn.dl, self.learn.iter, self.settings)))
        if len(self.seconds) > MAX_STEPS or sum(self.seconds[1:]) > self.budget_seconds:
            raise CancelFitException()

    def after_train(self) -> None:
        raise CancelEpochException()  # nothing is validated

    @property
    def per_position(self) -> float:
        """Seconds per position, without the first step, which compiles and allocates, unless it is the only one."""
        first = 1 if len(self.seconds) > 1 else 0
        return sum(self.seconds[first:]) / sum(self.positions[first:])

    def _now(self) -> float:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _measure(
    learner: DistributedLearner, runtime: Runtime, freezes: list[int], make_timer: Callable[[], StepTimer]
) -> dict[int, float]:
    """Return seconds per position by `freeze_to`: measured for the fewest and the most trained layers, else interpolated."""
    for message in compile_kernels(runtime.device, learner.loss_func):
        logger.debug(message)
    learner.create_opt()
    num_groups = len(learner.opt.param_lists)
    depth = {freeze: freeze % num_groups if freeze < 0 else freeze for freeze in freezes}  # the first group that is trained
    ends = {min(depth.values()), max(depth.values())} if learner.stage == "classifier" else {min(depth.values())}
    measured = {}
    for first in sorted(ends, reverse=True):
        timer = make_timer()
        learner.freeze_to(first)

        with learner.added_cbs(timer):
            learner.fit(MAX_STEPS // len(learner.dls.train) + 2, lr=0.0)
        measured[first] = timer.per_position
    first, last = min(measured), max(measured)
    return {
        freeze: float(np.interp(group, [first, max(last, first + 1)], [measured[first], measured[last]]))
        for freeze, group in depth.items()
    }


def _make_learner(config: Config, runtime: Runtime, store: TokenStore, stage: str) -> DistributedLearner:
    if stage == "lm":
        model = replace(config.model, pretrained=None)  # the time does not depend on the weights
        return lm_learner(replace(config, model=model), runtime, store)
    model, settings = replace(config.model, pretrained=None), replace(config.classifier, encoder=None)
    fresh = replace(config, model=model, classifier=settings, runs_dir=os.devnull)  # no encoder of an earlier run
    return classifier_learner(fresh, runtime, store, needs_encoder=False)


def _with_vocab(store: TokenStore, size: int | None) -> TokenStore:
    if size is None:
        return store
    larger = copy(store)
    larger.vocab = [*store.vocab, *(f"xx{number}" for number in range(size - len(store.vocab)))]
    return larger


def _work(config: Config, store: TokenStore, learner: DistributedLearner, scale: float) -> Work:
    train, valid = learner.dls.train, learner.dls.valid
    settings = config.classifier
    trained, read = zip(*(_positions_of_step(train, step, settings) for step in range(len(train))), strict=True)
    once = replace(settings, unlabelled=UnlabelledConfig())
    num_valid = sum(sum(_positions_of_step(valid, step, once)) for step in range(len(valid)))
    test_lengths = store.lengths[split_documents(store, config).test].astype(np.float64)
    if config.classifier.max_doc_tokens is not None:
        test_lengths = np.minimum(test_lengths, config.classifier.max_doc_tokens)
    steps = max(1, round(len(train) * scale))
    return Work(sum(trained) * scale, sum(read) * scale, num_valid * scale, float(test_lengths.sum()) * scale, steps)


def _positions_of_step(loader: Any, step: int, settings: ClassifierConfig) -> tuple[float, float]:
    """Return the positions of a step that are computed with and without gradient, each once per pass."""
    if isinstance(loader, LMLoader):
        begin = step * loader.seq_len
        return float(loader.global_batch_size * min(loader.seq_len, loader.row_len - begin)), 0.0
    assert isinstance(loader, ClassifierLoader)
    with_gradient, without = 0.0, 0.0
    for documents, passes in zip(loader.documents_of_step(step), settings.unlabelled.passes, strict=False):
        lengths = loader.lengths[documents]
        padded = lengths[0] - (lengths[0] - lengths) // loader.seq_len * loader.seq_len
        trained = np.minimum(padded, settings.max_len)
        with_gradient += passes * float(trained.sum())
        without += passes * float((padded - trained).sum())
    return with_gradient, without


def _operations(learner: DistributedLearner, stage: str) -> float:
    """Return floating-point operations of training on a position: six for each parameter of a matrix product."""
    embedding = learner.model[0].module if stage == "classifier" else learner.model[0]
    rows = embedding.encoder.weight.numel()
    total = sum(parameter.numel() for parameter in learner.model.parameters())
    return 6.0 * (total if stage == "lm" else total - rows)


@contextmanager
def _runtime_restored(runtime: Runtime) -> Iterator[None]:
    """Restore the runtime's micro-batch size, gradient scaler and statistics after a measurement."""
    size = runtime.micro_batch_size
    try:
        yield
    finally:
        runtime.micro_batch_size = size
        runtime.reset_grad_scaler()
        runtime.step_timer.take()
        gc.collect()
        if runtime.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
