"""The callback that joins a fastai learner to Accelerate.

For the time of a fit the learner's model is the one that Accelerate prepared: wrapped in DDP over the parameters that
the phase trains, its forward in mixed precision. After the fit the bare model is back, and nothing of the wrapping is
left. fastai's own `DistributedTrainer` also wraps the loaders, which breaks language models: here loaders are already
each rank's own.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import fastai.distributed  # noqa: F401  gives DDP the reset() that fastai's ModelResetter calls
import torch
from fastai.callback.core import Callback
from fastai.optimizer import Optimizer
from torch import Tensor

from ulmfit_dist.runtime import Runtime


class AccelerateCallback(Callback):
    """Prepares the model before a fit, and does what a step needs Accelerate for.

    Args:
        runtime: holds the `Accelerator`.
        grad_clip: norm that the global gradient is clipped to; None for no clipping.
    """

    order = -5  # after fastai's TrainEvalCallback has moved the model to its device

    def __init__(self, runtime: Runtime, grad_clip: float | None = None):
        self.runtime, self.accelerator, self.grad_clip = runtime, runtime.accelerator, grad_clip

    def before_fit(self) -> None:
        for parameter in self.learn.model.parameters():
            parameter.grad = None  # else the optimizer would go on with what is frozen now
        self.learn.model = self.accelerator.prepare_model(self.learn.model)

    def after_fit(self) -> None:
        self.learn.model = self.accelerator.unwrap_model(self.learn.model, keep_fp32_wrapper=False)
        self.accelerator.free_memory()

    def gradients(self, is_last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: the ranks exchange gradients at the last one of a step."""
        return nullcontext() if is_last else self.accelerator.no_sync(self.learn.model)

    def backward(self, loss: Tensor) -> None:
        """Backward, the loss scaled where the precision is fp16."""
        self.accelerator.backward(loss)

    def step(self, optimizer: Optimizer) -> None:
        """Clip and step; with a loss scaler a step of infinite gradients is left out, on all ranks alike."""
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(optimizer)
        if self.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(self.learn.model.parameters(), self.grad_clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
