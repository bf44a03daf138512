"""fastai's learner with a training step of ours.

The step is that of a global batch: this rank's micro-batches one after the other, their losses weighed by their share, one
optimizer step. Everything around it is fastai's: callbacks and their events, parameter groups, freezing, one-cycle
schedules, the optimizer. A user's own callbacks meet the events that they know; `after_pred`, `after_loss` and the backward
events come once per micro-batch, all others once per step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from fastai.callback.core import Callback, CancelBackwardException, CancelStepException, TrainEvalCallback
from fastai.callback.rnn import RNNCallback
from fastai.data.core import DataLoaders
from fastai.text.learner import TextLearner
from torch import Tensor

from ulmfit_dist.config import ClassifierConfig, LMConfig
from ulmfit_dist.data.batches import Batches, MicroBatch
from ulmfit_dist.model.awd_lstm import AWDLSTM, encoder_of
from ulmfit_dist.randomness import seed_torch
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.training.accelerate import AccelerateCallback
from ulmfit_dist.training.metrics import Metrics


class DistributedLearner(TextLearner):
    """A `TextLearner` over loaders that yield lists of `MicroBatch`.

    Attributes:
        stage: "lm" or "classifier".
        seed: what dropout is drawn from, with the position.
        stage_epoch, stage_step: epochs and steps of the stage so far, over all phases.
        encoder: the AWD-LSTM within the model, wrapped or not.
        valid_metrics: what the last evaluation found.
        loss: mean loss of this rank in the last training step, without AR and TAR.
    """

    stage: str
    seed: int
    stage_epoch: int
    stage_step: int
    encoder: AWDLSTM
    micro_batches: list[MicroBatch]

    def _set_device(self, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        return [batch.to(self.dls.device) for batch in micro_batches]

    def _split(self, micro_batches: list[MicroBatch]) -> None:
        self.micro_batches = micro_batches

    def _do_one_batch(self) -> None:
        if self.training:
            self._train_step()
        else:
            self._evaluate_step()

    def _train_step(self) -> None:
        accelerate: AccelerateCallback = self.accelerate
        seed_torch(self.seed, self.stage, "step", self.stage_step, accelerate.runtime.rank)
        rank_weight = sum(batch.weight for batch in self.micro_batches)
        loss = torch.zeros((), device=self.dls.device)
        for batch in self.micro_batches:
            with accelerate.gradients(is_last=batch is self.micro_batches[-1]):
                self._forward(batch)
                self.loss_grad = self.loss_func(self.pred, *self.yb)
                loss += self.loss_grad.detach() * (batch.weight / rank_weight)
                self.loss = self.loss_grad.detach()
                self("after_loss")
                self.loss_grad = self.loss_grad * (batch.weight * accelerate.runtime.world_size)
                self._with_events(self._backward, "backward", CancelBackwardException)
        self.loss = loss
        self._with_events(self._step, "step", CancelStepException)
        self.opt.zero_grad()
        self.stage_step += 1

    def _evaluate_step(self) -> None:
        for batch in self.micro_batches:
            self._forward(batch)
            self.evaluation.metrics.update(self.pred, batch)

    def _forward(self, batch: MicroBatch) -> None:
        self.xb, self.yb = (batch.x,), (batch.y,)
        self.encoder.first_row = batch.rows.start
        self.pred = self.model(*self.xb)
        self("after_pred")

    def _backward(self) -> None:
        self.accelerate.backward(self.loss_grad)

    def _step(self) -> None:
        self.accelerate.step(self.opt)


class ActivationRegularization(Callback):
    """AR and TAR (Merity et al., 2017) added to the loss, as fastai's `RNNRegularizer`; a step of one token has no TAR.

    Args:
        alpha: weight of the mean square of the dropped-out output.
        beta: weight of the mean square of the raw output's change from token to token.
    """

    order, run_valid = RNNCallback.order + 1, False

    def __init__(self, alpha: float, beta: float):
        self.alpha, self.beta = alpha, beta

    def after_loss(self) -> None:
        dropped_bTE, raw_bTE = self.learn.rnn.out, self.learn.rnn.raw_out
        if self.alpha:
            self.learn.loss_grad = self.learn.loss_grad + self.alpha * dropped_bTE.pow(2).mean()
        if self.beta and raw_bTE.shape[1] > 1:
            change_bTE = raw_bTE[:, 1:] - raw_bTE[:, :-1]
            self.learn.loss_grad = self.learn.loss_grad + self.beta * change_bTE.pow(2).mean()


class StagePosition(Callback):
    """Counts epochs over all phases of a stage, and gives each its order of documents."""

    order = -20

    def before_train(self) -> None:
        self.learn.dls.train.set_epoch(self.learn.stage_epoch)

    def after_train(self) -> None:
        self.learn.stage_epoch += 1


class Evaluation(Callback):
    """Metrics of a validation: set to zero before it, added up over the ranks after it."""

    order = -4

    def __init__(self, metrics: Metrics, runtime: Runtime):
        self.metrics, self.runtime = metrics, runtime

    def before_validate(self) -> None:
        self.metrics.reset(self.runtime.device)

    def after_validate(self) -> None:
        self.learn.valid_metrics = self.metrics.compute(self.runtime)


def build_learner(
    stage: str,
    settings: LMConfig | ClassifierConfig,
    model: torch.nn.Module,
    splitter: Callable,
    loss: Callable[[Tensor, Tensor], Tensor],
    metrics: Metrics,
    train: Batches,
    valid: Batches,
    runtime: Runtime,
    seed: int,
) -> DistributedLearner:
    """A learner for one stage, its model on the rank's device.

    Args:
        splitter: fastai's, gives the parameter groups that freezing and learning rates go by.
        loss: mean loss of a micro-batch from the model's first output and the targets.
    """
    learner = DistributedLearner(
        DataLoaders(train, valid, device=runtime.device),
        model.to(runtime.device),
        alpha=0,
        beta=0,  # ours below: fastai's divides by zero where a step has one token
        loss_func=loss,
        splitter=splitter,
        wd=settings.wd,
        moms=tuple(settings.moms),
        default_cbs=False,
        cbs=[
            TrainEvalCallback(),
            StagePosition(),
            AccelerateCallback(runtime, settings.grad_clip),
            Evaluation(metrics, runtime),
            ActivationRegularization(settings.alpha, settings.beta),
        ],
    )
    learner.stage, learner.seed, learner.encoder = stage, seed, encoder_of(model)
    learner.stage_epoch, learner.stage_step = 0, 0
    return learner
