"""Batch norm over the global batch, on any device.

torch's `SyncBatchNorm` has no CPU path. This one sums count, values and squares over the ranks in one all-reduce of
doubles, so one rank and many compute the same statistics to the last digit or so; evaluation needs no exchange. With
gradient accumulation the statistics are those of the micro-batch, as everywhere.

b: examples of a rank, F: features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn


class _SumOverRanks(torch.autograd.Function):
    """All-reduced sum whose gradient is the all-reduced sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        distributed.all_reduce(total)
        return total


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """`nn.BatchNorm1d` for [b, F] whose training statistics are those of all ranks' examples together.

    Every rank must call it in training, with at least one example.
    """

    def forward(self, x_bF: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_bF)
        assert self.running_mean is not None
        shift_F = self.running_mean.double()  # any value near the mean will do that all ranks have: squares lose digits else
        wide_bF = x_bF.double() - shift_F
        sums = torch.cat([wide_bF.sum(0), wide_bF.square().sum(0), wide_bF.new_tensor([len(x_bF)])])
        if distributed.is_initialized() and distributed.get_world_size() > 1:
            sums = _SumOverRanks.apply(sums)
        count = sums[-1].detach()
        mean_F, square_F = sums[:-1].view(2, -1) / count
        variance_F = (square_F - mean_F.square()).clamp_min(0)
        self._update_running(mean_F.detach() + shift_F, variance_F.detach() * count / (count - 1).clamp_min(1))
        scale_F = torch.rsqrt(variance_F + self.eps) * self.weight
        return ((wide_bF - mean_F) * scale_F + self.bias).to(x_bF.dtype)

    @torch.no_grad()
    def _update_running(self, mean_F: Tensor, variance_F: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_F.to(self.running_mean.dtype), self.momentum or 0.1)
        self.running_var.lerp_(variance_F.to(self.running_var.dtype), self.momentum or 0.1)


def use_global_batch_norm(module: nn.Module) -> None:
    """Replace each `nn.BatchNorm1d` within a module, keeping its parameters, buffers and state keys."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d):
            replacement = GlobalBatchNorm1d(child.num_features, child.eps, child.momentum)
            replacement.load_state_dict(child.state_dict())
            setattr(module, name, replacement)
        else:
            use_global_batch_norm(child)
