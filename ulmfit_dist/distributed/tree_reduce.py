"""Tree reduction of the gradients of canonical ranks, in an order that does not depend on the number of ranks.

Floating-point sums depend on the order of their terms, and DDP's order depends on the number of ranks. Here the terms are
the gradients of the canonical ranks, added in pairs, then in pairs of pairs: (0 + 1) + (2 + 3). A rank adds the gradients
that it computed; then it exchanges sums with its neighbor, then with the neighboring pair, and so on. So 1, 2 and 4 ranks
get bitwise-equal sums. The trade-off: one copy of the gradients per level of the tree, and no overlap with the backward
pass.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ulmfit_dist.distributed.runtime import Runtime


class PairwiseSum:
    """Pairwise sum of lists of tensors, one list at a time: a binary counter whose digits are partial sums."""

    def __init__(self) -> None:
        self._partial: list[tuple[int, list[Tensor]]] = []

    def add(self, tensors: list[Tensor]) -> None:
        """Add one term. Its tensors may be modified in place."""
        level = 0
        while self._partial and self._partial[-1][0] == level:
            earlier = self._partial.pop()[1]
            torch._foreach_add_(tensors, earlier)
            level += 1
        self._partial.append((level, tensors))

    def take(self) -> list[Tensor]:
        """Return the sum of the terms, whose number must be a power of two, and reset it."""
        ((_, total),) = self._partial
        self._partial = []
        return total


class PairwiseGradients:
    """Gradients of one step, summed over all canonical ranks. Existing gradients of the parameters are added at the end.

    Args:
        parameters: parameters to sum the gradients of; frozen ones are skipped.
        runtime: runtime of a power of two of ranks, each with the same number of canonical ranks.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], runtime: Runtime):
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.runtime, self._sum = runtime, PairwiseSum()
        self._before = self._take()

    def add(self) -> None:
        """Move the gradients of a canonical rank out of the parameters."""
        self._sum.add(self._take())

    def finish(self) -> None:
        """Write the sum over all ranks into the parameters' gradients. Collective."""
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
