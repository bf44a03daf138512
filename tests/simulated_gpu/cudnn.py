"""LSTMs with cuDNN's rules, computed by the CPU's LSTM in fp32.

As on a GPU, input, state and weights have one dtype, the state is contiguous, autocast selects fp16, the backward pass needs
training mode, and non-contiguous weights are copied in each call, with a warning.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from simulated_gpu.counters import COUNTERS
from simulated_gpu.tensor import SimulatedTensor

SCATTERED = (
    "RNN module weights are not part of single contiguous chunk of memory. This means they need to be compacted at every "
    "call, possibly greatly increasing memory usage. To compact weights again call flatten_parameters()."
)
"""torch's warning (aten/src/ATen/native/cudnn/RNN.cpp)."""

cpu_lstm = torch._VF.lstm


class CudnnLSTM(torch.autograd.Function):
    """LSTM layer with one node in the graph."""

    @staticmethod
    def forward(ctx: Any, training: bool, batch_first: bool, x: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> Any:
        given = [tensor.inner.detach().float().requires_grad_() for tensor in (x, h, c, *weights)]
        with torch.enable_grad():  # always: without a graph the CPU's LSTM rounds differently
            results = cpu_lstm(given[0], given[1:3], given[3:], True, 1, 0.0, True, False, batch_first)
        ctx.training, ctx.given, ctx.results, ctx.dtype, ctx.device = training, given, results, x.dtype, x.device
        return tuple(SimulatedTensor(result.detach().to(x.dtype), x.device) for result in results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        if not ctx.training:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        pairs = [(r, g.inner.float()) for r, g in zip(ctx.results, gradients, strict=True) if g is not None]
        results, given = zip(*pairs, strict=True)
        actual = torch.autograd.grad(results, ctx.given, given, allow_unused=True)
        return None, None, *(None if g is None else SimulatedTensor(g.to(ctx.dtype), ctx.device) for g in actual)


def lstm(x: Tensor, hx: Any, weights: Any, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Simulated `torch._VF.lstm`."""
    if not isinstance(x, SimulatedTensor):
        return cpu_lstm(x, hx, weights, *options)
    has_biases, num_layers, _, training, bidirectional, batch_first = options
    if not has_biases or num_layers != 1 or bidirectional:
        raise NotImplementedError("the simulated GPU computes LSTMs of one layer and one direction, with biases")
    if torch.is_autocast_enabled("cuda"):  # which has cuDNN's LSTMs compute in fp16, whatever its type is
        x, hx, weights = x.half(), [part.half() for part in hx], flattened([weight.half() for weight in weights])
    _check(x, hx, weights)
    COUNTERS.lstms += 1
    if not is_flat(weights):
        COUNTERS.scattered += 1
        warnings.warn(SCATTERED, stacklevel=2)
    return CudnnLSTM.apply(training, batch_first, x, *hx, *weights)


def flattened(weights: list[Tensor]) -> list[Tensor]:
    pieces = torch.cat([weight.flatten() for weight in weights]).split([weight.numel() for weight in weights])
    return [piece.view_as(weight) for piece, weight in zip(pieces, weights, strict=True)]


def is_flat(weights: list[Tensor]) -> bool:
    """Return whether weights are contiguous in one storage, from its beginning, in cuDNN's order."""
    storage = weights[0].inner.untyped_storage()
    place = storage.data_ptr()
    for weight in weights:
        other = weight.inner
        if (
            other.untyped_storage().data_ptr() != storage.data_ptr()
            or other.data_ptr() != place
            or not other.is_contiguous()
        ):
            return False
        place += other.numel() * other.element_size()
    return True


def _check(x: Tensor, hx: Any, weights: Any) -> None:
    for tensor in (*hx, *weights):
        if not isinstance(tensor, SimulatedTensor):
            raise RuntimeError(f"Input and hidden tensors are not at the same device: a CPU tensor of {tuple(tensor.shape)}")
        if tensor.dtype != x.dtype:
            raise RuntimeError(f"RNN: input is {x.dtype}, a state or weight of {tuple(tensor.shape)} is {tensor.dtype}")
    if not all(part.is_contiguous() for part in hx):
        raise RuntimeError("rnn: hx is not contiguous")
