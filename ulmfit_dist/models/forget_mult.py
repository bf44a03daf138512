"""Recurrence of a QRNN: gates of all steps to its output, forward and backward in one `autograd.Function`.

The recurrence is sequential, one fused operator per step, in place of a scan of logarithmic depth: the steps are
elementwise and read each gate once, and a scan reads it seven times for 70 tokens (`python -m benchmarks.scans` compares
them). It divides by nothing, so no product of forget gates can underflow. What is not recurrent, such as the activations, is
computed for a block of steps at once: few enough to stay in a CPU's cache. The state is fp32 or fp64: in bf16, the update by
a small gate is lost in rounding. Each element depends only on its own row and feature, so the bits do not depend on the
batch. Trade-off: the Function overwrites its input, which saves a copy of the largest tensor of the network.

b: rows of a micro-batch, T: tokens of a step, H: width of a layer, G: 3H, gates z (candidate), f (forget) and o (output).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CPU_BLOCK = 8
"""Steps whose activations a CPU computes at once: their gates stay in its cache."""


def forget_mult(gates_TbG: Tensor, h_bH: Tensor, kept_TbH: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the output sigmoid(o_t) · h_t, [T, b, H], and the last state, [b, H], of h_t = f_t · z_t + (1 - f_t) · h_{t-1}.

    Args:
        gates_TbG: gates before their activations: tanh of z, sigmoid of f and o. It is overwritten, so it must not be a leaf
            or an input of another operator.
        h_bH: state before the first step, in the dtype of the gates, or fp32 for 16-bit gates.
        kept_TbH: zone-out: 0 where the state stays as it is, 1 elsewhere, in the dtype of the gates; None: 1.

    The output has the dtype of the gates, the state that of `h_bH`.
    """
    return _apply(gates_TbG, h_bH.to(state_dtype(gates_TbG)), kept_TbH)


def state_dtype(gates: Tensor) -> torch.dtype:
    """Return the dtype of the state: that of the gates, at least fp32."""
    return torch.promote_types(gates.dtype, torch.float32)


class _ForgetMult(torch.autograd.Function):
    """See `forget_mult`."""

    @staticmethod
    def forward(ctx: Any, gates_TbG: Tensor, h_bH: Tensor, kept_TbH: Tensor | None) -> tuple[Tensor, Tensor]:
        z_TbH, f_TbH, o_TbH = gates_TbG.chunk(3, dim=2)
        state_TbH = torch.empty_like(z_TbH, dtype=h_bH.dtype, memory_format=torch.contiguous_format)
        output_TbH = torch.empty_like(z_TbH, memory_format=torch.contiguous_format)
        previous_bH = h_bH
        for block in _blocks(gates_TbG):
            z_TbH[block].tanh_()
            torch.sigmoid_(gates_TbG[block][..., z_TbH.shape[2] :])
            if kept_TbH is not None:
                f_TbH[block].mul_(kept_TbH[block])
            z, f = (gate[block].to(h_bH.dtype).unbind() for gate in (z_TbH, f_TbH))
            for z_bH, f_bH, out_bH in zip(z, f, state_TbH[block].unbind(), strict=True):
                previous_bH = torch.lerp(previous_bH, z_bH, f_bH, out=out_bH)
            torch.mul(o_TbH[block], state_TbH[block], out=output_TbH[block])
        ctx.save_for_backward(gates_TbG, state_TbH, h_bH)
        return output_TbH, state_TbH[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TbH: Tensor, grad_last_bH: Tensor) -> tuple[Tensor, Tensor, None]:
        gates_TbG, state_TbH, h_bH = ctx.saved_tensors
        grads_TbG = torch.empty_like(gates_TbG)
        grad_bH = grad_last_bH
        for block in reversed(_blocks(gates_TbG)):
            z_TbH, f_TbH, o_TbH = gates_TbG[block].to(h_bH.dtype).chunk(3, dim=2)
            before_bH = state_TbH[block.start - 1] if block.start else h_bH
            h_TbH = torch.cat([before_bH[None], state_TbH[block]])
            from_output_TbH = grad_TbH[block].to(h_bH.dtype)
            total_TbH = from_output_TbH * o_TbH
            carried_TbH = 1 - f_TbH
            total_TbH[-1].add_(grad_bH)
            later, carried = total_TbH.unbind()[::-1], carried_TbH.unbind()[::-1]
            for later_bH, carried_bH, total_bH in zip(later, carried, later[1:], strict=False):
                total_bH.addcmul_(later_bH, carried_bH)
            grad_bH = total_TbH[0] * carried_TbH[0]
            grad_z_TbH, grad_f_TbH, grad_o_TbH = grads_TbG[block].chunk(3, dim=2)
            grad_z_TbH.copy_(torch.ops.aten.tanh_backward(total_TbH * f_TbH, z_TbH))
            forget_TbH = total_TbH * (z_TbH - h_TbH[:-1])
            grad_f_TbH.copy_(torch.ops.aten.sigmoid_backward(forget_TbH, f_TbH))  # 0 where zone-out set f to 0
            grad_o_TbH.copy_(torch.ops.aten.sigmoid_backward(from_output_TbH * h_TbH[1:], o_TbH))
        return grads_TbG, grad_bH, None


_apply: Callable[..., tuple[Tensor, Tensor]] = _ForgetMult.apply


def _blocks(gates_TbG: Tensor) -> list[slice]:
    """Return slices of the steps; on a GPU a single one, because a kernel costs more than a pass through its memory."""
    num_steps = len(gates_TbG)
    size = CPU_BLOCK if gates_TbG.device.type == "cpu" else num_steps
    return [slice(start, min(start + size, num_steps)) for start in range(0, num_steps, size)]
