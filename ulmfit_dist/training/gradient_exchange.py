"""The gradient exchange of a backward pass through DDP, and its completion on a rank that has failed.

DDP sums gradients in buckets, each as soon as its parameters have their gradients. A rank that fails in the middle has
started some of these sums, and the other ranks wait for the rest. Here the failed rank starts the rest, with meaningless
values: afterwards all ranks drop their gradients. Trade-off: one Python hook per parameter and step.
"""

from __future__ import annotations

from weakref import WeakMethod

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


class GradientExchange:
    """Tracks the gradient exchange of one module.

    Args:
        module: wrapped by DDP over the parameters that are trained.
        is_compressed: whether a communication hook compresses the buckets, which allocates memory itself.
    """

    def __init__(self, module: DistributedDataParallel, is_compressed: bool):
        self.module, self.is_compressed = module, is_compressed
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        mark_ready = WeakMethod(self._mark_ready)  # a strong reference would keep DDP, and so the process group, alive

        def hook(parameter: Tensor) -> None:
            if (method := mark_ready()) is not None:
                method(parameter)

        self._handles = [parameter.register_post_accumulate_grad_hook(hook) for parameter in self._parameters]
        self._ready: set[Tensor] = set()

    def begin(self) -> None:
        """Reset at the start of a step."""
        self._ready.clear()

    def complete(self) -> None:
        """Start all sums that the other ranks still wait for, after this rank has failed.

        Raises:
            RuntimeError: compression has failed, so a sum cannot be started.
        """
        missing = [parameter for parameter in self._parameters if parameter not in self._ready]
        if len(missing) == len(self._parameters):
            self.module.reducer.prepare_for_backward([])
        if missing:
            torch.autograd.backward([parameter.sum() for parameter in missing])
        if (missing or self.is_compressed) and not self._is_finished():
            raise RuntimeError("the gradient exchange cannot be completed after an error in DDP's communication hook")

    def close(self) -> None:
        """Remove the hooks from the parameters."""
        for handle in self._handles:
            handle.remove()

    def _mark_ready(self, parameter: Tensor) -> None:
        if self.module.require_backward_grad_sync:  # DDP's own hook, which runs next, ignores other passes as well
            self._ready.add(parameter)

    def _is_finished(self) -> bool:
        try:
            self.module.reducer._rebuild_buckets()  # already rebuilt before the first step: this call only checks
        except RuntimeError:
            return False
        return True
