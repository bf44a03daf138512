"""Compile a stage's GPU kernels before its first step."""

from __future__ import annotations

import torch

from ulmfit_dist.cuda.compile import messages
from ulmfit_dist.models.fused_cross_entropy import DecoderLoss
from ulmfit_dist.models.masks import compile_masks
from ulmfit_dist.models.softmax_gradient import softmax_gradient_on


def compile_kernels(device: torch.device, loss: object) -> list[str]:
    """Compile dropout masks and, for a `DecoderLoss`, the loss; return log lines with the compiler and the seconds.

    Kernels are compiled once per process, at the latest at their first use, so a later stage returns no lines, and neither
    does a CPU.
    """
    compile_masks(device.type)
    if isinstance(loss, DecoderLoss):
        softmax_gradient_on(device.type, loss.dtype)
    lines = list(messages)
    messages.clear()
    return lines
