"""Gradients of virtual ranks, added up in the same order on any number of ranks.

Sums in floating point depend on the order of their terms, and DDP's order on the number of ranks. Here the terms are the
virtual ranks', and they are added by pairs, the pairs by pairs, and so on: (0 + 1) + (2 + 3). A rank adds those that it
computed; then ranks exchange their sums with a neighbour, with the neighbouring pair, ... So 1, 2 and 4 ranks get equal
bits. The price: a copy of the gradients per level of the tree, and no exchange behind the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ulmfit_dist.distributed.runtime import Runtime


class PairwiseSum:
    """Adds lists of tensors by pairs as they come: a binary counter whose digits are partial sums."""

    def __init__(self) -> None:
        self._partial: list[tuple[int, list[Tensor]]] = []

    def add(self, tensors: list[Tensor]) -> None:
        """Take one more term; its tensors may be changed."""
        level = 0
        while self._partial and self._partial[-1][0] == level:
            earlier = self._partial.pop()[1]
            torch._foreach_add_(tensors, earlier)
            level += 1
        self._partial.append((level, tensors))

    def take(self) -> list[Tensor]:
        """The sum of the terms, as many as a power of two; then begin anew."""
        ((_, total),) = self._partial
        self._partial = []
        return total


class PairwiseGradients:
    """What the parameters' gradients of one step come to over all virtual ranks. What they held before is added at the end.

    Args:
        parameters: frozen ones among them are left out.
        runtime: a power of two of ranks, each with as many virtual ranks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], runtime: Runtime):
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.runtime, self._sum = runtime, PairwiseSum()
        self._before = self._take()

    def add(self) -> None:
        """Take the gradients that a virtual rank has left in the parameters."""
        self._sum.add(self._take())

    def finish(self) -> None:
        """Put the sum over all ranks into the parameters. Collective."""
        gradients = self._sum.take()
        if self.runtime.world_size > 1:
            flat = self.runtime.tree_all_reduce(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        torch._foreach_add_(gradients, self._before)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient

    def _take(self) -> list[Tensor]:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        return gradients
