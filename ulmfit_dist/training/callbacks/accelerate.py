"""The callback that joins a fastai learner to Accelerate.

For the time of a fit the learner's modules are those that Accelerate prepared: wrapped in DDP over the parameters that
the phase trains, their forward in mixed precision. After the fit the bare modules are back, and nothing of the wrapping is
left. fastai's own `DistributedTrainer` also wraps the loaders, which breaks language models: here loaders are already
each rank's own. Where sums are to be exact, gradients go another way than DDP's (`distributed/tree_reduce.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import fastai.distributed  # noqa: F401  gives DDP the reset() that fastai's ModelResetter calls
import torch
from fastai.callback.core import Callback
from fastai.optimizer import Optimizer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ulmfit_dist.data.batches import BatchShard
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.distributed.tree_reduce import PairwiseGradients
from ulmfit_dist.training.gradient_exchange import GradientExchange

NEVER = 2**31 - 1
"""Steps between two in which DDP takes its own time: it waits for the device to read it."""


class AccelerateCallback(Callback):
    """Prepares the model before a fit, and does what a step needs Accelerate for.

    Args:
        runtime: holds the `Accelerator`.
        share: what of every global batch is this rank's.
        grad_clip: norm that the global gradient is clipped to; None for no clipping.

    Attributes:
        has_gradients: whether the parameters hold gradients that the optimizer has not seen.
    """

    order = -5  # after fastai's TrainEvalCallback has moved the model to its device

    def __init__(self, runtime: Runtime, share: BatchShard, grad_clip: float | None = None):
        self.runtime, self.accelerator, self.share, self.grad_clip = runtime, runtime.accelerator, share, grad_clip
        self.bytes_of_a_step = 0  # that DDP exchanges
        self.scale = 1 if share.exact else runtime.world_size  # DDP divides the sum by the number of ranks
        self.has_gradients = False
        self.wrapped: list[DistributedDataParallel] = []
        self.exchanges: list[GradientExchange] = []
        self.pairwise: PairwiseGradients | None = None

    def before_fit(self) -> None:
        self.runtime.activate()
        for parameter in self.learn.model.parameters():
            parameter.grad = None  # else the optimizer would go on with what is frozen now
        self.has_gradients = False
        if self.share.exact:
            self.runtime.broadcast_in_place(self.learn.model.parameters())  # as DDP does
        self.learn.replace_modules(self._prepare)
        gradients = [parameter for module in self.wrapped for parameter in module.parameters() if parameter.requires_grad]
        self.bytes_of_a_step = sum(
            2 * g.numel() if self.runtime.settings.gradient_compression else g.nbytes for g in gradients
        )

    def after_fit(self) -> None:
        for exchange in self.exchanges:
            exchange.close()
        self.wrapped, self.exchanges, self.pairwise = [], [], None
        self.learn.replace_modules(self._unwrap)
        self.accelerator.free_memory()

    def renew(self) -> None:
        """Drop all gradients and wrap the modules again, whatever state an attempt at a step has left DDP in. Collective."""
        self.after_fit()
        self.before_fit()

    def begin_exchange(self) -> None:
        """Before the gradients of a step are computed."""
        self.pairwise = None
        for exchange in self.exchanges:
            exchange.begin()

    def complete_exchange(self) -> None:
        """Take part in what other ranks exchange in their backward passes, after this rank has failed in its own."""
        for exchange in reversed(self.exchanges):  # as in a backward pass: the head's first
            exchange.complete()
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()  # the modules are wrapped again next, which frees the buckets

    def finish_exchange(self) -> None:
        """After the gradients of a step are computed, where another way than DDP's is gone. Collective."""
        if self.pairwise is not None:
            self.pairwise.finish()

    @contextmanager
    def gradients(self, module: torch.nn.Module, number: int, count: int) -> Iterator[None]:
        """Around forward and backward of micro-batch `number` of `count`: at the last one DDP exchanges gradients."""
        is_last = number == count - 1
        if self.share.exact and number == 0:
            self.pairwise = PairwiseGradients(module.parameters(), self.runtime)
        with nullcontext() if is_last else self.without_exchange(module):
            yield
        is_virtual_ranks_last = (number + 1) % (count // len(self.share.canonical_ranks)) == 0
        if self.pairwise is not None and is_virtual_ranks_last:
            self.pairwise.add()

    def without_exchange(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """Around forward and backward passes whose gradients stay on this rank."""
        return self.accelerator.no_sync(module)

    def backward(self, loss: Tensor, *inner: tuple[Tensor, Tensor]) -> None:
        """Backward of a loss, which is scaled where the precision is fp16, and of inner tensors with known gradients.

        Args:
            inner: pairs of a tensor and its gradient, scaled already.
        """
        scaler = self.accelerator.scaler
        tensors, gradients = zip((loss if scaler is None else scaler.scale(loss), None), *inner, strict=True)
        with self._timed_exchange(tensors[0]):
            torch.autograd.backward(tensors, gradients)

    def step(self, optimizer: Optimizer) -> None:
        """Clip and step; with a loss scaler a step of infinite gradients is left out, on all ranks alike."""
        self.runtime.bytes_given += self.bytes_of_a_step
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

    @contextmanager
    def _timed_exchange(self, loss: Tensor) -> Iterator[None]:
        """Around a backward pass: what is left of DDP's exchange when all gradients are computed is a lap of communication.

        DDP waits for its buckets in a callback at the end of the pass, which it queues at the last gradient. One that is
        queued at the first gradient runs before it.
        """
        timer = self.runtime.step_timer
        is_exchange = any(module.require_backward_grad_sync for module in self.wrapped)
        if is_exchange:
            engine = torch.autograd.Variable._execution_engine  # type: ignore[attr-defined]
            loss.register_hook(lambda _: engine.queue_callback(lambda: timer.end(None)))
        yield
        if is_exchange:
            timer.end("communication")

    def _prepare(self, module: torch.nn.Module) -> torch.nn.Module:
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        no_ddp = frozen or self.share.exact  # mixed precision, but nothing to exchange
        prepared = self.accelerator.prepare_model(module, evaluation_mode=no_ddp)
        if isinstance(prepared, DistributedDataParallel):
            freeze_ddp_buckets(prepared)
            prepared._set_ddp_runtime_logging_sample_rate(NEVER)
            self.wrapped.append(prepared)
            self.exchanges.append(GradientExchange(prepared, self.runtime.settings.gradient_compression is not None))
        return prepared

    def _unwrap(self, module: torch.nn.Module) -> torch.nn.Module:
        bare = self.accelerator.unwrap_model(module, keep_fp32_wrapper=False)
        bare.__dict__.pop("_is_accelerate_prepared", None)  # else the next phase would not prepare it
        return bare


def freeze_ddp_buckets(module: DistributedDataParallel) -> None:
    """Have DDP choose its buckets for good before the first step, by a backward pass of nothing. Collective.

    DDP chooses them anew after its first backward pass. With more than two ranks the order in which an element is added up
    depends on its place in the bucket, so a run that was resumed would round its first step differently.
    """
    parameters = [parameter for parameter in module.module.parameters() if parameter.requires_grad]
    module.reducer.prepare_for_backward([])
    torch.stack([parameter.sum() for parameter in parameters]).sum().backward()
    module.reducer._rebuild_buckets()
    for parameter in parameters:
        parameter.grad = None
