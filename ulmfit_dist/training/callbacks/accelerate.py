"""The callback that connects a fastai learner to Accelerate.

During a fit the learner's modules are those that Accelerate prepared: wrapped in DDP over the parameters that the phase
trains, their forward in mixed precision. After the fit the bare modules are restored. fastai's own `DistributedTrainer` also
wraps the loaders, which breaks language models: here each rank already has a loader of its own rows. For a fixed reduction
order (`runtime.canonical_ranks`) gradients are reduced by `distributed/tree_reduce.py` instead of DDP. Trade-off: each phase
wraps the modules again, which costs one empty backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import fastai.distributed  # noqa: F401  adds the reset() to DDP that fastai's ModelResetter calls
import torch
from fastai.callback.core import Callback
from fastai.optimizer import Optimizer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ulmfit_dist.data.batches import BatchShard
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.distributed.tree_reduce import PairwiseGradients
from ulmfit_dist.training.callbacks.order import CallbackOrder
from ulmfit_dist.training.gradient_exchange import GradientExchange

NEVER = 2**31 - 1
"""Interval, in steps, at which DDP measures its own time, for which it waits for the device."""


class AccelerateCallback(Callback):
    """Prepares the model before a fit; runs backward passes, gradient exchange and optimizer steps.

    Args:
        runtime: provides the `Accelerator`.
        shard: rows of every global batch that this rank computes.
        grad_clip: maximum norm of the global gradient; None for no clipping.

    Attributes:
        bytes_per_step: bytes that DDP exchanges in a step.
        scale: factor on the loss that cancels DDP's division by the world size.
        has_gradients: whether the parameters hold gradients that the optimizer has not applied.
        wrapped, exchanges: DDP modules of the fit and their gradient exchanges.
        pairwise: reduction in a fixed order of the step's gradients, where it replaces DDP's.
    """

    order = CallbackOrder.ACCELERATE

    def __init__(self, runtime: Runtime, shard: BatchShard, grad_clip: float | None = None):
        self.runtime, self.accelerator, self.shard, self.grad_clip = runtime, runtime.accelerator, shard, grad_clip
        self.bytes_per_step = 0
        self.scale = 1 if shard.exact else runtime.world_size
        self.has_gradients = False
        self.wrapped: list[DistributedDataParallel] = []
        self.exchanges: list[GradientExchange] = []
        self.pairwise: PairwiseGradients | None = None

    def before_fit(self) -> None:
        self.runtime.activate()
        for parameter in self.learn.model.parameters():
            parameter.grad = None  # else the optimizer would keep updating what is frozen now
        self.has_gradients = False
        if self.shard.exact:
            self.runtime.broadcast_in_place(self.learn.model.parameters())  # as DDP does
        self.learn.replace_modules(self._prepare)
        gradients = [parameter for module in self.wrapped for parameter in module.parameters() if parameter.requires_grad]
        self.bytes_per_step = sum(
            2 * g.numel() if self.runtime.settings.gradient_compression else g.nbytes for g in gradients
        )

    def after_fit(self) -> None:
        for exchange in self.exchanges:
            exchange.close()
        self.wrapped, self.exchanges, self.pairwise = [], [], None
        self.learn.replace_modules(self._unwrap)
        self.accelerator.free_memory()

    @contextmanager
    def evaluation_precision(self) -> Iterator[None]:
        """Wrap a validation outside of a fit: the modules compute in the precision of the fit's validations."""
        self.learn.replace_modules(lambda module: self.accelerator.prepare_model(module, evaluation_mode=True))
        try:
            yield
        finally:
            self.learn.replace_modules(self._unwrap)
            self.accelerator.free_memory()

    def renew(self) -> None:
        """Drop all gradients and wrap the modules again, whatever state a failed step has left DDP in. Collective."""
        self.after_fit()
        self.before_fit()

    def begin_exchange(self) -> None:
        """Reset the exchange, before the gradients of a step are computed."""
        self.pairwise = None
        for exchange in self.exchanges:
            exchange.begin()

    def complete_exchange(self) -> None:
        """Join the gradient exchange of the other ranks' backward passes, after this rank has failed in its own."""
        for exchange in reversed(self.exchanges):  # in the order of a backward pass: the head first
            exchange.complete()
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()  # the modules are wrapped again next, which frees the buckets

    def finish_exchange(self) -> None:
        """Reduce the gradients of a step that DDP has not reduced, after they are computed. Collective."""
        if self.pairwise is not None:
            self.pairwise.finish()

    @contextmanager
    def gradients(self, module: torch.nn.Module, number: int, count: int) -> Iterator[None]:
        """Wrap forward and backward of micro-batch `number` of `count`: DDP exchanges gradients at the last one only."""
        is_last = number == count - 1
        if self.shard.exact and number == 0:
            self.pairwise = PairwiseGradients(module.parameters(), self.runtime)
        with nullcontext() if is_last else self.without_exchange(module):
            yield
        is_last_of_canonical_rank = (number + 1) % (count // len(self.shard.canonical_ranks)) == 0
        if self.pairwise is not None and is_last_of_canonical_rank:
            self.pairwise.add()

    def without_exchange(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """Wrap forward and backward passes whose gradients stay on this rank."""
        context: AbstractContextManager[None] = self.accelerator.no_sync(module)
        return context

    def backward(self, loss: Tensor | None, *inner: tuple[Tensor, Tensor]) -> None:
        """Run the backward pass of a loss, scaled in fp16, and of inner tensors with known gradients.

        Args:
            loss: None: of inner tensors only.
            inner: pairs of a tensor and its gradient, already scaled.
        """
        scaler = self.accelerator.scaler
        outer = [] if loss is None else [(loss if scaler is None else scaler.scale(loss), None)]
        tensors, gradients = zip(*outer, *inner, strict=True)
        with self._timed_exchange(tensors[0]):
            torch.autograd.backward(tensors, gradients)

    def step(self, optimizer: Optimizer) -> None:
        """Clip and step; with a loss scaler a step with infinite gradients is skipped on all ranks."""
        self.runtime.bytes_given += self.bytes_per_step
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
        """Wrap a backward pass: count the time that DDP's exchange takes after the last gradient as communication.

        DDP waits for its buckets in a callback at the end of the pass, which it queues at the last gradient. A callback
        queued at the first gradient runs before it.
        """
        timer = self.runtime.step_timer
        is_exchange = any(module.require_backward_grad_sync for module in self.wrapped)
        if is_exchange:
            engine = torch.autograd.Variable._execution_engine
            loss.register_hook(lambda _: engine.queue_callback(lambda: timer.end(None)))
        yield
        if is_exchange:
            timer.end("communication")

    def _prepare(self, module: torch.nn.Module) -> torch.nn.Module:
        frozen = not any(parameter.requires_grad for parameter in module.parameters())
        no_ddp = frozen or self.shard.exact  # mixed precision only: DDP has nothing to exchange
        prepared: torch.nn.Module = self.accelerator.prepare_model(module, evaluation_mode=no_ddp)
        if isinstance(prepared, DistributedDataParallel):
            freeze_ddp_buckets(prepared)
            prepared._set_ddp_runtime_logging_sample_rate(NEVER)
            self.wrapped.append(prepared)
            self.exchanges.append(GradientExchange(prepared, self.runtime.settings.gradient_compression is not None))
        return prepared

    def _unwrap(self, module: torch.nn.Module) -> torch.nn.Module:
        bare: torch.nn.Module = self.accelerator.unwrap_model(module, keep_fp32_wrapper=False)
        bare.__dict__.pop("_is_accelerate_prepared", None)  # else Accelerate would skip it in the next phase
        return bare


def freeze_ddp_buckets(module: DistributedDataParallel) -> None:
    """Make DDP choose its final buckets before the first step, by an empty backward pass. Collective.

    DDP rebuilds them after its first backward pass. With more than two ranks the order in which an element is summed depends
    on its position in the bucket, so a resumed run would round its first step differently.
    """
    parameters = [parameter for parameter in module.module.parameters() if parameter.requires_grad]
    module.reducer.prepare_for_backward([])
    torch.stack([parameter.sum() for parameter in parameters]).sum().backward()
    module.reducer._rebuild_buckets()
    for parameter in parameters:
        parameter.grad = None
