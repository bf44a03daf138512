"""Classifiers in int8 on CPUs: weights of LSTMs, QRNNs and linear layers, and their inputs, quantized as they arrive.

A weight has one scale per output, an input one scale per row and token (dynamic quantization), so what a document's
prediction loses to rounding depends on no other document of its batch. Sums are exact integers, and inputs have 7 bits,
because the int8 instructions of CPUs without VNNI overflow at 8: so every CPU computes the same sums. Hidden states, cells,
gates and the embedding stay fp32, and the input product of the first layer is computed once per distinct token of a chunk.

torch's own `quantize_dynamic` is deprecated, quantizes a whole batch with one scale, and its tensors of quantized dtypes are
deprecated too. The product here is oneDNN's, on plain integer tensors. Trade-off: the recurrence is a loop in Python, whose
overhead counts for few documents at once, so a single text gains less than a file.

b: rows of a batch, T: tokens of a chunk, K, N: inputs and outputs of a product, H: width of a layer, U: distinct tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.awd_lstm import AWDLSTM
from ulmfit_dist.models.bundle import ModelBundle, load_model
from ulmfit_dist.models.encoder import Encoder, Hidden
from ulmfit_dist.models.layers import SequentialRNN
from ulmfit_dist.models.networks import awd_lstm_of, encoder_of
from ulmfit_dist.models.qrnn import QRNN
from ulmfit_dist.models.registry import user_class

QUANTIZATIONS = ("int8",)
"""Values of `--quantize`."""
LARGEST_INPUT, LARGEST_WEIGHT = 63, 127
"""Largest absolute values of quantized inputs and weights: 127 times 127, twice, fits 16 bits."""
ZERO = 64
"""Integer that stands for an input of zero; inputs are unsigned."""
SMALLEST_SCALE = 1e-30
"""Lower bound of a scale, for rows of zeros."""
INPUT_WEIGHTS = ("weight_ih", "bias_ih", "bias_hh")
"""Weights and biases of an LSTM that are independent of the hidden state."""
TYPICAL_ROWS = 64
"""Number of rows for which oneDNN arranges the weights; any number can be computed."""


class Int8Linear(nn.Module):
    """Linear layer with int8 weights, and inputs that are quantized per row.

    Args:
        weight_NK: the weights, fp32.
        bias_N: the bias, fp32; None for a layer without it.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, weight_NK: Tensor, bias_N: Tensor | None = None):
        super().__init__()
        weight_NK = weight_NK.detach().float()
        scale_N = weight_NK.abs().amax(1).div_(LARGEST_WEIGHT).clamp_min_(SMALLEST_SCALE)
        rounded_NK = (weight_NK / scale_N[:, None]).round().clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT).to(torch.int8)
        self.bias = None if bias_N is None else bias_N.detach().float()
        packed = torch.ops.onednn.qlinear_prepack(rounded_NK, [TYPICAL_ROWS, weight_NK.shape[1]])
        buffers = {"packed": packed, "scale": scale_N, "zero": torch.zeros(len(scale_N), dtype=torch.int32)}
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x_bK: Tensor) -> Tensor:
        """Return the outputs of rows, fp32 [..., N] for [..., K]."""
        shape = x_bK.shape[:-1]
        x_bK, scale_b1 = quantize_rows(x_bK.flatten(0, -2))
        output_bN: Tensor = torch.ops.onednn.qlinear_pointwise(
            x_bK, 1.0, ZERO, self.packed, self.scale, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        output_bN.mul_(scale_b1)
        if self.bias is not None:
            output_bN.add_(self.bias)
        return output_bN.view(*shape, -1)


class Int8LSTM(nn.Module):
    """LSTM layer with int8 weights, without dropout.

    Args:
        lstm: the layer, `nn.LSTM` with biases.
        weight_hh: its hidden-to-hidden weights, fp32 [4H, H].
    """

    def __init__(self, lstm: nn.LSTM, weight_hh: Tensor):
        super().__init__()
        self.hidden_size = lstm.hidden_size
        weight_ih, bias_ih, bias_hh = (_cell_gate_last(getattr(lstm, f"{name}_l0")) for name in INPUT_WEIGHTS)
        self.input = Int8Linear(weight_ih, bias_ih + bias_hh)
        self.recurrent = Int8Linear(_cell_gate_last(weight_hh))

    def forward(self, gates: Iterable[Tensor], h_bH: Tensor, c_bH: Tensor, num_steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the output [T, b, H] and the last h and c, each [b, H].

        Args:
            gates: the output of `input` for each step, [b, 4H], which is modified.
            h_bH, c_bH: state before the first step.
            num_steps: T.
        """
        width = self.hidden_size
        output_TbH = h_bH.new_empty(num_steps, *h_bH.shape)
        for step, gates_bG in enumerate(gates):
            gates_bG.add_(self.recurrent(h_bH))
            input_bH, forget_bH, output_bH = gates_bG[:, : 3 * width].sigmoid_().split(width, 1)
            c_bH = (forget_bH * c_bH).addcmul_(input_bH, gates_bG[:, 3 * width :].tanh_())
            h_bH = torch.mul(output_bH, c_bH.tanh(), out=output_TbH[step])
        return output_TbH, h_bH, c_bH


class Int8AWDLSTM(Encoder):
    """An AWD-LSTM in int8, for evaluation only: it has no dropout.

    Args:
        source: the encoder to quantize; the embedding is shared with it.
    """

    rnns: Any

    def __init__(self, source: AWDLSTM):
        super().__init__()
        self.encoder = source.encoder
        self.rnns = nn.ModuleList(Int8LSTM(rnn.module, rnn.weight_hh_l0_raw) for rnn in source.rnns)

    def read(self, x_bT: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        distinct_U, index_bT = torch.unique(x_bT, return_inverse=True)
        table_UG = self.rnns[0].input(F.embedding(distinct_U, self.encoder.weight))
        gates: Iterable[Tensor] = (table_UG.index_select(0, index_b) for index_b in index_bT.t())
        new_state: Hidden = []
        output_TbH = table_UG
        for layer, (rnn, (h_1bH, c_1bH)) in enumerate(zip(self.rnns, state, strict=True)):
            if layer:
                gates = rnn.input(output_TbH.flatten(0, 1)).unflatten(0, output_TbH.shape[:2])
            output_TbH, h_bH, c_bH = rnn(gates, h_1bH[0], c_1bH[0], x_bT.shape[1])
            new_state.append((h_bH[None], c_bH[None]))
        return output_TbH.transpose(0, 1), new_state

    def zero_state(self, num_rows: int) -> Hidden:
        widths = [rnn.hidden_size for rnn in self.rnns]
        return [tuple(self.encoder.weight.new_zeros(1, num_rows, width) for _ in range(2)) for width in widths]

    def layer_groups(self) -> list[nn.Module]:
        return list(self.rnns)


def check_quantize(quantize: str | None, config: Config, device: torch.device) -> None:
    """Raise UserError unless `quantize` is None, or this classifier can be quantized for this device."""
    if quantize is None:
        return
    if quantize not in QUANTIZATIONS:
        raise UserError(f"quantize={quantize}: expected {' or '.join(QUANTIZATIONS)}, or None")
    if device.type != "cpu":
        raise UserError(f"quantize={quantize} is for CPUs, but the device is {device}: give --device cpu, or leave it out")
    if (arch := user_class(config.model)) is not None:
        raise UserError(
            f"quantize={quantize} is for AWD-LSTM and QRNN, but model.arch is {arch}: leave out the quantization"
        )
    if not torch.backends.mkldnn.is_available():
        raise UserError(f"quantize={quantize} needs oneDNN, which this torch is built without: leave out the quantization")


def load_quantized(exported: ModelBundle, device: torch.device, trust: bool, quantize: str | None) -> nn.Module:
    """Return the network of an exported classifier as `load_model` does, quantized unless `quantize` is None.

    Raises:
        UserError: as `load_model` and `check_quantize`.
    """
    check_quantize(quantize, exported.config, device)
    model = load_model(exported, device, trust)
    return model if quantize is None else quantize_classifier(model)


def quantize_classifier(model: nn.Module) -> nn.Module:
    """Return the classifier with its recurrent and linear layers in int8; modified in place. It must be on the CPU."""
    assert isinstance(model, SequentialRNN)
    if isinstance(encoder := encoder_of(model), QRNN):
        for layer in encoder.layers:
            layer.linear = Int8Linear(layer.linear.weight_raw, layer.linear.module.bias)
    else:
        model[0].module = Int8AWDLSTM(awd_lstm_of(model))
    for block in model[1].layers:
        for name, layer in [*block.named_children()]:
            if isinstance(layer, nn.Linear):
                setattr(block, name, Int8Linear(layer.weight, layer.bias))
    return model.eval()


def quantize_rows(x_bK: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows as integers, uint8 [b, K], `ZERO` for 0, and the scale of each row, fp32 [b, 1]."""
    scale_b1 = x_bK.abs().amax(1, keepdim=True).div_(LARGEST_INPUT).clamp_min_(SMALLEST_SCALE)
    return (x_bK / scale_b1).add_(ZERO + 0.5).to(torch.uint8), scale_b1


def _cell_gate_last(weight: Tensor) -> Tensor:
    """Return an LSTM's weights or biases with the rows of gates i, f, o, g, so that the sigmoids are side by side."""
    input_gate, forget_gate, cell_gate, output_gate = weight.detach().chunk(4)
    return torch.cat([input_gate, forget_gate, output_gate, cell_gate])
