"""fastai's learner over global batches.

The training step is that of a global batch, and ours (`training/train_steps.py`). Everything around it is fastai's:
callbacks and their events, parameter groups, freezing, one-cycle schedules, the optimizer. User-defined callbacks receive
fastai's events. Trade-off: what fastai builds on items and transforms (`predict`, `get_preds`, `show_results`) is refused.
"""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

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
from ulmfit_dist.models.fused_cross_entropy import ActivationRegularization
from ulmfit_dist.models.layers import SequentialRNN
from ulmfit_dist.models.networks import encoder_of
from ulmfit_dist.training.callbacks.accelerate import AccelerateCallback
from ulmfit_dist.training.callbacks.lr_finder import range_test, suggested
from ulmfit_dist.training.callbacks.order import CallbackOrder
from ulmfit_dist.training.optimizer import FusedAdam
from ulmfit_dist.training.out_of_memory import (
    ADVICE,
    RankOutOfMemoryError,
    agree_on_memory,
    refuse_validation,
    repeat_when_out_of_memory,
)
from ulmfit_dist.training.train_state import TrainState
from ulmfit_dist.utils.memory import explain_out_of_memory

AnyLearner = TypeVar("AnyLearner", bound="DistributedLearner")


# ABCMeta because ABC brings empty __slots__, and fastcore's store_attr in Learner keeps only what __slots__ names.
class DistributedLearner(TextLearner, metaclass=ABCMeta):
    """A `TextLearner` over loaders that yield lists of `MicroBatch`; subclasses define the training step (`train_steps.py`).

    Args:
        dls: training and validation loaders of this rank, each a `RankLoader`.
        model: on the rank's device.
        train_state: progress of the stage.
        regularization: AR and TAR.
        learner_arguments: arguments of fastai's `Learner`.

    Attributes:
        keeps_hidden_states: whether the encoder keeps hidden states between steps, which are then part of a checkpoint.
        dropout_context: position that the model's dropout masks and hidden states depend on.
        valid_metrics: metrics of the last validation by name; empty before the first one.
        loss: mean loss of the last training step over the rows that this rank computes it of, without AR and TAR.
        further_losses: further losses of the last training step by name, as scalars that are equal on all ranks.
        exporter: writes the model to a folder, or to the run directory if that is None; set by a notebook only.
    """

    keeps_hidden_states: ClassVar[bool]

    model: SequentialRNN
    exporter: Callable[[Path | None], Path] | None = None
    micro_batches: list[MicroBatch]
    xb: tuple[Tensor, ...]
    yb: tuple[Tensor, ...]
    loss: Tensor
    pred: Any
    loss_grad: Any

    def __init__(
        self,
        dls: DataLoaders,
        model: nn.Module,
        train_state: TrainState,
        regularization: ActivationRegularization,
        **learner_arguments: Any,
    ):
        super().__init__(dls, model, alpha=0, beta=0, **learner_arguments)  # fastai's own AR and TAR are replaced
        self.train_state, self.regularization = train_state, regularization
        self.dropout_context = encoder_of(model).position
        self.valid_metrics: dict[str, float] = {}
        self.further_losses: dict[str, Tensor] = {}
        self.epoch = 0  # read by a message before the first fit

    @property
    def stage(self) -> str:
        """Name of the stage, "lm" or "classifier"."""
        return self.train_state.stage

    @property
    def stage_epoch(self) -> int:
        """Epochs completed over all phases."""
        return self.train_state.stage_epoch

    @property
    def stage_step(self) -> int:
        """Optimizer steps completed over all phases."""
        return self.train_state.stage_step

    @property
    def rows_of_step(self) -> int:
        """Rows of the largest global batch that a step computes."""
        return self.micro_batches[0].global_rows

    def _set_device(self, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        return [batch.to(self.dls.device) for batch in micro_batches]

    def _split(self, micro_batches: list[MicroBatch]) -> None:
        self.micro_batches = micro_batches

    def _do_fit(self) -> None:
        for epoch in range(self.train_state.first_epoch, self.n_epoch):
            self.epoch = epoch
            self._with_events(self._do_epoch, "epoch", CancelEpochException)
            if self.train_state.is_stopped:
                return

    def all_batches(self) -> None:
        """As fastai's; after a resume from the step at which training continues."""
        self.n_iter = len(self.dl)
        first = self.train_state.first_step if self.training else 0
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
        """Score of the last validation, by which checkpoints are compared; higher is better."""
        metrics: Metrics = self.evaluation.metrics
        return metrics.score(self.valid_metrics)

    def _train_step(self) -> None:
        """Make one optimizer step from `self.micro_batches`, or from smaller ones if these do not fit in memory."""
        what = f"{self.stage} step {self.stage_step}, outside of its micro-batches"
        with explain_out_of_memory(what, f"start more ranks, {ADVICE[self.stage]}"):
            repeat_when_out_of_memory(self, self._compute_gradients)
            self._optimizer_step()

    @abstractmethod
    def _compute_gradients(self) -> None:
        """Compute the gradients of the global batch from `self.micro_batches`."""

    @abstractmethod
    def replace_modules(self, replace: Callable[[nn.Module], nn.Module]) -> None:
        """Replace each module that is trained as a whole by what the function returns for it."""

    def lr_find(
        self,
        start_lr: float = 1e-7,
        end_lr: float = 10,
        num_it: int = 100,
        stop_div: bool = True,
        show_plot: bool = True,
        suggest_funcs: Callable[..., Any] | Sequence[Callable[..., Any]] = SuggestionMethod.Valley,
    ) -> Any:
        """As fastai's, from the losses of global batches: suggestions as a named tuple. Collective."""
        result = range_test(self, start_lr, end_lr, num_it, stop_diverged=stop_div)
        suggestions = suggested(suggest_funcs, result)
        if show_plot and self.accelerate.runtime.is_main:
            from matplotlib import pyplot

            result.draw(pyplot.subplots()[1])
        return namedtuple("SuggestedLRs", suggestions)(**suggestions)

    def validate(self, ds_idx: int = 1, dl: RankLoader | None = None, cbs: list[Callback] | None = None) -> dict[str, float]:
        """As fastai's, but return the metrics of all ranks by name. Collective."""
        super().validate(ds_idx, dl, cbs)
        return self.valid_metrics

    def export(self, folder: Path | None = None) -> Path:
        """Write the model in the format of this package, where fastai would pickle the learner. Collective.

        Args:
            folder: default: that of the stage in the run directory, from which the classifier loads its language model.

        Raises:
            UserError: the folder cannot be written.
        """
        if self.exporter is None:
            raise _refused("export")
        return self.exporter(folder)

    def predict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise UserError, as do fastai's other methods that need items."""
        raise _refused("predict")

    def get_preds(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise _refused("get_preds")

    def show_results(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise _refused("show_results")

    def limit_micro_batches(self, size: int) -> None:
        """Limit micro-batches to a number of rows from now on: in training, validation and the stages that follow."""
        self.accelerate.runtime.micro_batch_size = size
        shard = self.accelerate.shard = replace(self.accelerate.shard, micro_batch_size=size)
        for loader in (self.dls.train, self.dls.valid):
            loader.set_shard(shard)

    def recut_micro_batches(self) -> None:
        """Read the step's micro-batches again if the loader now cuts them differently."""
        shard = self.accelerate.shard
        num_pieces = shard.num_pieces(self.micro_batches[0].global_rows)
        if len(self.micro_batches) != num_pieces * len(shard.canonical_ranks):
            self._split(self._set_device(next(self.dl.from_step(self.iter))))

    def release(self) -> None:
        """Release the graph of a step that has failed."""
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
        """Set fastai's `xb`, `yb` and `pred` to those of one micro-batch."""
        self.xb, self.yb = (batch.x,), (batch.y,)
        self.set_dropout_context(batch.rows)
        self.pred = self._predict(batch)
        self("after_pred")

    def _predict(self, batch: MicroBatch) -> Any:
        """Return the model's output for a micro-batch."""
        return self.model(batch.x)

    def _optimizer_step(self) -> None:
        self._with_events(lambda: self.accelerate.step(self.opt), "step", CancelStepException)
        self.opt.zero_grad()
        self.accelerate.has_gradients = False
        self.train_state.stage_step += 1

    def set_dropout_context(self, rows: range) -> None:
        """Set the step and the rows of the global batch that the model computes next."""
        self.dropout_context.step, self.dropout_context.rows = self.stage_step, rows


def _refused(name: str) -> UserError:
    return UserError(
        f"learn.{name} needs fastai's pipeline of items, which this learner does not have: write the model with "
        f"learn.export(), then use load_classifier(run).predict(texts), load_language_model(run).generate(prompt) or "
        f"show_results(run)"
    )


class EpochCounter(Callback):
    """Counts epochs over all phases of a stage, and sets the order of documents of each."""

    order = CallbackOrder.EPOCH_COUNTER

    def before_train(self) -> None:
        self.learn.dls.train.set_epoch(self.learn.train_state.stage_epoch)

    def after_train(self) -> None:
        self.learn.train_state.stage_epoch += 1
        self.learn.train_state.first_step = 0

    def after_fit(self) -> None:
        self.learn.train_state.first_epoch = 0
        self.learn.dropout_context.step = None  # must be set again before the model is used in training mode


class EvaluationCallback(Callback):
    """Resets the metrics before a validation, and reduces them over the ranks after it."""

    order = CallbackOrder.EVALUATION

    def __init__(self, metrics: Metrics, runtime: Runtime):
        self.metrics, self.runtime = metrics, runtime

    def before_validate(self) -> None:
        self.metrics.reset(self.runtime.device)

    def after_validate(self) -> None:
        self.learn.valid_metrics = self.metrics.compute(self.runtime)


@dataclass(frozen=True)
class LearnerParts:
    """Model, data and objective of a learner.

    Attributes:
        model: network of the stage, on any device.
        splitter: returns the parameter groups for freezing and learning rates, as fastai's splitters do.
        loss: mean loss from the model's first output and the targets.
        metrics: accumulators of the validation.
        train, valid: loaders of this rank.
    """

    model: nn.Module
    splitter: Callable[[nn.Module], list[list[nn.Parameter]]]
    loss: Callable[[Tensor, Tensor], Tensor]
    metrics: Metrics
    train: RankLoader
    valid: RankLoader


def build_learner(
    learner_class: type[AnyLearner],
    stage: str,
    parts: LearnerParts,
    settings: StageConfig,
    runtime: Runtime,
    seed: int,
) -> AnyLearner:
    """Return an untrained learner of a stage, its model on the rank's device.

    Args:
        learner_class: `LMLearner` or `ClassifierLearner` (`training/train_steps.py`).
        stage: name of the stage, part of the keys of its dropout masks.
        settings: the stage's section of the config.
        seed: part of the keys of the dropout masks.
    """
    context = encoder_of(parts.model).position
    context.seed, context.stage = seed, stage
    return learner_class(
        DataLoaders(parts.train, parts.valid, device=runtime.device),
        parts.model.to(runtime.device),
        TrainState(stage, num_phases=len(settings.phases)),
        ActivationRegularization(settings.alpha, settings.beta),
        loss_func=parts.loss,
        opt_func=FusedAdam,
        splitter=parts.splitter,
        wd=settings.wd,
        moms=tuple(settings.moms),
        default_cbs=False,
        cbs=[
            TrainEvalCallback(),
            EpochCounter(),
            AccelerateCallback(runtime, parts.train.shard, settings.grad_clip),
            EvaluationCallback(parts.metrics, runtime),
        ],
    )
