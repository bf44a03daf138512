"""AWD-QRNN: the AWD-LSTM with quasi-recurrent layers (Bradbury et al., 2017), with the modules, keys and sums of fastai's.

A layer computes the gates of all tokens in one matrix product, from a token and, in the first layer, the one before it; only
an elementwise recurrence goes from token to token (`forget_mult.py`). So an encoder of 400/1152/3 has 2.5 times fewer
multiplications than an AWD-LSTM, all of them in large products. Trade-off: a gate does not see the state, so a layer alone
models less.

fastai removed its QRNN in version 2.4; weights of earlier versions and of MultiFiT have the same keys.

b: rows of a micro-batch, T: tokens of a step, E: width of the embedding, I: inputs of a layer, H: its outputs, G: 3H, gates.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit_dist.config.schema import ModelConfig
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.models.awd_lstm import INITIAL_RANGE
from ulmfit_dist.models.dropout import DropoutContext, EmbeddingDropout, LinearWeightDropout, RowDropout
from ulmfit_dist.models.encoder import Encoder, Hidden
from ulmfit_dist.models.forget_mult import forget_mult

NAME = "qrnn"
"""Value of `model.arch`."""


class QRNNLayer(nn.Module):
    """One quasi-recurrent layer with an output gate.

    Args:
        n_in, n_out: input and output features.
        window: tokens that a gate is computed from: 1, or 2 for a token and the one before it.
        weight_p: probability of a weight to be dropped.
        zoneout: probability of a feature of a token to leave the state as it is.
        site: site in the network.
        position: position of the forward pass.
    """

    linear: Any

    def __init__(
        self, n_in: int, n_out: int, window: int, weight_p: float, zoneout: float, site: str, position: DropoutContext
    ):
        super().__init__()
        self.n_in, self.n_out, self.window, self.zoneout, self.site, self.position = (
            n_in,
            n_out,
            window,
            zoneout,
            site,
            position,
        )
        self.linear = LinearWeightDropout(nn.Linear(window * n_in, 3 * n_out), weight_p, site, position)

    def forward(self, x_TbI: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the output, [T, b, H], and the state: h, [1, b, H], and for window 2 the last input, [1, b, I]."""
        window_TbI = x_TbI
        if self.window == 2:
            before_TbI = torch.cat([state[1].to(x_TbI.dtype), x_TbI[:-1]])
            window_TbI = torch.cat([x_TbI, before_TbI], dim=2)
        output_TbH, last_bH = forget_mult(self.linear(window_TbI), state[0][0], self._kept(x_TbI))
        return output_TbH, (last_bH[None], x_TbI[-1:])[: self.window]

    def _kept(self, x_TbI: Tensor) -> Tensor | None:
        """Return the zone-out mask, [T, b, H], 0 where the state stays as it is; None without zone-out.

        fastai's also scales the other gates up, past 1. This is the paper's, which scales none (section 2.2).
        """
        if not self.training or not self.zoneout:
            return None
        num_steps, num_rows, _ = x_TbI.shape
        rows = self.position.rows[:num_rows]
        mask_bF = self.position.row_mask(f"{self.site} zoneout", rows, num_steps * self.n_out, self.zoneout, x_TbI)
        return (mask_bF != 0).view(len(rows), num_steps, self.n_out).transpose(0, 1)

    def extra_repr(self) -> str:
        return f"{self.n_in}, {self.n_out}, window={self.window}, zoneout={self.zoneout}"


class SingleLayer(nn.Module):
    """A layer by the key `layers.0`, as in fastai, whose module may have several."""

    layers: Any

    def __init__(self, layer: QRNNLayer):
        super().__init__()
        self.layers = nn.ModuleList([layer])


class QRNN(Encoder):
    """The AWD-QRNN encoder.

    Args:
        vocab_size: size of the vocabulary, V.
        model: sizes of the network.
        dropouts: `embed_p`, `input_p`, `hidden_p` and `weight_p`, probabilities.
        zoneout: probability of a feature of a token to leave a layer's state as it is, from 0 to below 1.
    """

    can_be_perturbed = True

    rnns: Any
    hidden_dps: Any

    def __init__(self, vocab_size: int, model: ModelConfig, dropouts: dict[str, float], zoneout: float = 0.0):
        super().__init__()
        if not 0 <= zoneout < 1:
            raise ValueError(f"zoneout={zoneout}: expected a number from 0 to below 1")
        self.n_layers = model.n_layers
        self.encoder = nn.Embedding(vocab_size, model.emb_sz, padding_idx=PAD_ID)
        self.encoder_dp = EmbeddingDropout(self.encoder, dropouts["embed_p"], "embedding", self.position)
        widths = [model.emb_sz, *[model.n_hid] * (model.n_layers - 1), model.emb_sz]
        self.rnns = nn.ModuleList(
            SingleLayer(
                QRNNLayer(*sizes, 1 if layer else 2, dropouts["weight_p"], zoneout, f"weights {layer}", self.position)
            )
            for layer, sizes in enumerate(pairwise(widths))
        )
        nn.init.uniform_(
            self.encoder.weight, -INITIAL_RANGE, INITIAL_RANGE
        )  # after the layers, in the order of fastai's draws
        self.input_dp = RowDropout(dropouts["input_p"], "input", self.position)
        self.hidden_dps = nn.ModuleList(
            RowDropout(dropouts["hidden_p"], f"hidden {layer}", self.position) for layer in range(self.n_layers)
        )

    @property
    def layers(self) -> list[QRNNLayer]:
        """The layers, lowest first."""
        return [rnn.layers[0] for rnn in self.rnns]

    def read(self, x_bT: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        output_bTH = self.input_dp(self.perturbed(self.encoder_dp(x_bT.t()).transpose(0, 1)))
        new_state: Hidden = []
        for number, (layer, dropout) in enumerate(zip(self.layers, self.hidden_dps, strict=True)):
            output_TbH, hidden = layer(output_bTH.transpose(0, 1), state[number])
            new_state.append(hidden)
            output_bTH = output_TbH.transpose(0, 1)
            if number != self.n_layers - 1:
                output_bTH = dropout(output_bTH)
        return output_bTH, new_state

    def zero_state(self, num_rows: int) -> Hidden:
        def zeros(width: int) -> Tensor:
            return self.encoder.weight.new_zeros(1, num_rows, width)

        return [(zeros(layer.n_out), zeros(layer.n_in))[: layer.window] for layer in self.layers]

    def layer_groups(self) -> list[nn.Module]:
        return list(self.rnns)
