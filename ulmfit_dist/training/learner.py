"""fastai's learner over global batches.

A training step is that of a global batch, and ours (`training/train_steps.py`). Everything around it is fastai's:
callbacks and their events, parameter groups, freezing, one-cycle schedules, the optimizer. User-defined callbacks receive
fastai's events.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from fastai.callback.core import Callback, CancelEpochException, CancelStepException, TrainEvalCallback
from fastai.callback.schedule import SuggestionMethod
from fastai.data.core import DataLoaders
from fastai.text.learner import TextLearner
from torch import Tensor, nn

from ulmfit_dist.config.schema import StageConfig
from ulmfit_dist.data.batches import MicroBatch, RankLoader
from ulmfit_dist.data.prefetch import prefetch_to_device
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.accumulators import Metrics
from ulmfit_dist.models.dropout import DropoutContext
from ulmfit_dist.models.fused_cross_entropy import ActivationRegularization
from ulmfit_dist.models.layers import SequentialRNN
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.training.callbacks.accelerate import AccelerateCallback
from ulmfit_dist.training.callbacks.lr_finder import range_test, suggested
from ulmfit_dist.training.optimizer import FusedAdam
from ulmfit_dist.training.out_of_memory import (
    ADVICE,
    RankOutOfMemoryError,
    agree_on_memory,
    refuse_validation,
    repeat_when_out_of_memory,
)
from ulmfit_dist.utils.memory import explain_out_of_memory

Stage = TypeVar("Stage", bound="DistributedLearner")


# ABCMeta, for ABC brings empty __slots__, and fastcore's store_attr in Learner keeps only what __slots__ names.
class DistributedLearner(TextLearner, metaclass=ABCMeta):
    """A `TextLearner` over loaders that yield lists of `MicroBatch`; its training step is a stage's own (`train_steps.py`).

    Attributes:
        stage: "lm" or "classifier".
        position: where the model is used: what its dropout masks and hidden states go by.
        stage_epoch, stage_step: epochs and steps of the stage so far, over all phases.
        first_epoch, first_step: where the next fit begins: after a resume not at its start.
        valid_metrics: what the last evaluation found.
        loss: mean loss of the last training step over the rows that this rank knows it of, without AR and TAR.
        is_stopped: whether the stage is to end with the epoch that has just ended.
        regularization: AR and TAR.
        exporter: writes the model where it is told, or to the run's folder; None where the stage exports it (`notebook.py`).
    """

    model: SequentialRNN
    stage: str
    position: DropoutContext
    stage_epoch: int
    stage_step: int
    first_epoch: int
    first_step: int
    is_stopped: bool
    regularization: ActivationRegularization
    exporter: Callable[[Path | None], Path] | None = None
    micro_batches: list[MicroBatch]
    xb: tuple[Tensor, ...]
    yb: tuple[Tensor, ...]
    pred: Any
    loss_grad: Any
    valid_metrics: dict[str, float]

    def _set_device(self, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        return [batch.to(self.dls.device) for batch in micro_batches]

    def _split(self, micro_batches: list[MicroBatch]) -> None:
        self.micro_batches = micro_batches

    def _do_fit(self) -> None:
        for epoch in range(self.first_epoch, self.n_epoch):
            self.epoch = epoch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)
            if self.is_stopped:
                return

    def all_batches(self) -> None:
        """fastai's, from the middle of an epoch on where training is taken up there."""
        self.n_iter = len(self.dl)
        first = self.first_step if self.training else 0
        steps = self.dl.from_step(first) if first else self.dl
        for step, micro_batches in enumerate(prefetch_to_device(steps, self.dls.device), first):
            self.one_batch(step, micro_batches)

    def _do_one_batch(self) -> None:
        if self.training:
            self._train_step()
        else:
            self._evaluate_step()

    @property
    def score(self) -> float:
        """What checkpoints are compared by, of the last evaluation; higher is better."""
        return self.evaluation.metrics.score(self.valid_metrics)

    def _train_step(self) -> None:
        """One optimizer step from `self.micro_batches`, or from smaller ones if the memory has no room for these."""
        what = f"{self.stage} step {self.stage_step}, outside of its micro-batches"
        with explain_out_of_memory(what, f"start more ranks, {ADVICE[self.stage]}"):
            repeat_when_out_of_memory(self, self._compute_gradients)
            self._optimizer_step()

    @abstractmethod
    def _compute_gradients(self) -> None:
        """The gradients of the global batch, from `self.micro_batches`."""

    @abstractmethod
    def replace_modules(self, replace: Callable[[nn.Module], nn.Module]) -> None:
        """Put another module in the place of each one that is trained as a whole."""

    def lr_find(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10,
        num_it: int = 100,
        stop_div: bool = True,
        show_plot: bool = True,
        suggest_funcs: Callable | Sequence[Callable] = SuggestionMethod.Valley,
    ) -> Any:
        """fastai's, with the losses of global batches: a named tuple of suggestions, the same on all ranks."""
        found = range_test(self, start_lr, end_lr, num_it, stop_diverged=stop_div)
        suggestions = suggested(suggest_funcs, found)
        if show_plot and self.accelerate.runtime.is_main:
            from matplotlib import pyplot

            found.draw(pyplot.subplots()[1])
        return namedtuple("SuggestedLRs", suggestions)(**suggestions)  # type: ignore[misc]

    def validate(self, ds_idx: int = 1, dl: RankLoader | None = None, cbs: list[Callback] | None = None) -> dict[str, float]:
        """fastai's; returns the metrics by name, those of all ranks. Collective."""
        super().validate(ds_idx, dl, cbs)
        return self.valid_metrics

    def export(self, folder: Path | None = None) -> Path:
        """Write the model for the rest of the package, where fastai would pickle the learner. Collective.

        Args:
            folder: default: that of the stage in the run directory, where the classifier looks for its language model.

        Raises:
            UserError: the folder cannot be written.
        """
        if self.exporter is None:
            raise _refused("export")
        return self.exporter(folder)

    def predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, as are fastai's other ways to what is not a batch of ours."""
        raise _refused("predict")

    def get_preds(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise _refused("get_preds")

    def show_results(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise _refused("show_results")

    def limit_micro_batches(self, size: int) -> None:
        """Compute at most so many rows at once from here on, in training, validation and the stages to come."""
        self.accelerate.runtime.micro_batch_size = size
        share = self.accelerate.share = replace(self.accelerate.share, micro_batch_size=size)
        for loader in (self.dls.train, self.dls.valid):
            loader.set_shard(share)

    def cut_again(self) -> None:
        """Have the step's micro-batches as the loader cuts them now."""
        share = self.accelerate.share
        num_pieces = share.num_pieces(self.micro_batches[0].global_rows)
        if len(self.micro_batches) != num_pieces * len(share.canonical_ranks):
            self._split(self._set_device(next(self.dl.from_step(self.iter))))

    def release(self) -> None:
        """Let go of the graph of a step that has failed."""
        self.xb = self.yb = ()
        self.pred = self.loss_grad = self.rnn.raw_out = self.rnn.out = None

    def _evaluate_step(self) -> None:
        try:
            agree_on_memory(self, self._evaluate)
        except RankOutOfMemoryError as failure:
            raise refuse_validation(self, failure) from None

    def _evaluate(self) -> None:
        for batch in self.micro_batches:
            self._forward(batch)
            self.evaluation.metrics.update(self.pred, batch)

    def _forward(self, batch: MicroBatch) -> None:
        """fastai's `xb`, `yb` and `pred` of one micro-batch."""
        self.xb, self.yb = (batch.x,), (batch.y,)
        self.set_dropout_context(batch.rows)
        self.pred = self._predict(batch)
        self("after_pred")

    def _predict(self, batch: MicroBatch) -> Any:
        """The model's output for a micro-batch."""
        return self.model(batch.x)

    def _optimizer_step(self) -> None:
        self._with_events(lambda: self.accelerate.step(self.opt), "step", CancelStepException)
        self.opt.zero_grad()
        self.accelerate.has_gradients = False
        self.stage_step += 1

    def set_dropout_context(self, rows: range) -> None:
        """Tell the model which rows of which step it computes next."""
        self.position.step, self.position.rows = self.stage_step, rows


def _refused(name: str) -> UserError:
    return UserError(
        f"learn.{name} goes through fastai's pipeline of items, which there is not here: write the model by learn.export(), "
        f"and read it by load_classifier(run).predict(texts), load_language_model(run).generate(prompt) or show_results(run)"
    )


class EpochCounter(Callback):
    """Counts epochs over all phases of a stage, and gives each its order of documents."""

    order = -20

    def before_train(self) -> None:
        self.learn.dls.train.set_epoch(self.learn.stage_epoch)

    def after_train(self) -> None:
        self.learn.stage_epoch += 1
        self.learn.first_step = 0

    def after_fit(self) -> None:
        self.learn.first_epoch = 0
        self.learn.position.step = None  # whoever goes on with the model must say where


class EvaluationCallback(Callback):
    """Metrics of a validation: set to zero before it, added up over the ranks after it."""

    order = -4

    def __init__(self, metrics: Metrics, runtime: Runtime):
        self.metrics, self.runtime = metrics, runtime

    def before_validate(self) -> None:
        self.metrics.reset(self.runtime.device)

    def after_validate(self) -> None:
        self.learn.valid_metrics = self.metrics.compute(self.runtime)


def build_learner(
    kind: type[Stage],
    stage: str,
    settings: StageConfig,
    model: torch.nn.Module,
    splitter: Callable,
    loss: Callable[[Tensor, Tensor], Tensor],
    metrics: Metrics,
    train: RankLoader,
    valid: RankLoader,
    runtime: Runtime,
    seed: int,
) -> Stage:
    """A learner for one stage, its model on the rank's device.

    Args:
        kind: the stage's learner (`training/train_steps.py`).
        splitter: gives the parameter groups that freezing and learning rates go by, as fastai's do.
        loss: mean loss from the model's first output and the targets.
        seed: what dropout masks are computed from, with the position.
    """
    learner = kind(
        DataLoaders(train, valid, device=runtime.device),
        model.to(runtime.device),
        alpha=0,
        beta=0,  # ours below
        loss_func=loss,
        opt_func=FusedAdam,
        splitter=splitter,
        wd=settings.wd,
        moms=tuple(settings.moms),
        default_cbs=False,
        cbs=[
            TrainEvalCallback(),
            EpochCounter(),
            AccelerateCallback(runtime, train.shard, settings.grad_clip),
            EvaluationCallback(metrics, runtime),
        ],
    )
    learner.stage, learner.position = stage, encoder_of(model).position
    learner.position.seed, learner.position.stage = seed, stage
    learner.stage_epoch, learner.stage_step = 0, 0
    learner.first_epoch, learner.first_step, learner.is_stopped = 0, 0, False
    learner.phase, learner.epoch = 0, 0  # for a message before the first fit
    learner.regularization = ActivationRegularization(settings.alpha, settings.beta)
    return learner
