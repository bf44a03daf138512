"""AWD-LSTM (Merity et al., 2017), with the modules, keys, initial weights and sums of fastai's.

The hidden state is kept per row (`encoder.py`), and dropout masks are computed from their position (`dropout.py`).

b: rows of a micro-batch, T: tokens of a step, E: width of the embedding.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from ulmfit_dist.config.schema import ModelConfig
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.models.dropout import EmbeddingDropout, RowDropout, WeightDropout
from ulmfit_dist.models.encoder import Encoder, Hidden

INITIAL_RANGE = 0.1
"""Bound of the uniform initial weights of embedding and decoder: from minus this to this."""


class AWDLSTM(Encoder):
    """The AWD-LSTM encoder.

    Args:
        vocab_size: size of the vocabulary, V.
        model: sizes of the network.
        dropouts: `embed_p`, `input_p`, `hidden_p` and `weight_p`, probabilities.
    """

    can_be_perturbed = True

    rnns: Any
    hidden_dps: Any

    def __init__(self, vocab_size: int, model: ModelConfig, dropouts: dict[str, float]):
        super().__init__()
        self.n_layers = model.n_layers
        self.encoder = nn.Embedding(vocab_size, model.emb_sz, padding_idx=PAD_ID)
        self.encoder_dp = EmbeddingDropout(self.encoder, dropouts["embed_p"], "embedding", self.position)
        widths = [model.emb_sz, *[model.n_hid] * (model.n_layers - 1), model.emb_sz]
        self.rnns = nn.ModuleList(
            WeightDropout(nn.LSTM(n_in, n_out, batch_first=True), dropouts["weight_p"], f"weights {layer}", self.position)
            for layer, (n_in, n_out) in enumerate(pairwise(widths))
        )
        nn.init.uniform_(
            self.encoder.weight, -INITIAL_RANGE, INITIAL_RANGE
        )  # after the LSTMs, in the order of fastai's draws
        self.input_dp = RowDropout(dropouts["input_p"], "input", self.position)
        self.hidden_dps = nn.ModuleList(
            RowDropout(dropouts["hidden_p"], f"hidden {layer}", self.position) for layer in range(self.n_layers)
        )

    def read(self, x_bT: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        output = self.input_dp(self.perturbed(self.encoder_dp(x_bT)))
        new_state: Hidden = []
        for layer, (rnn, dropout) in enumerate(zip(self.rnns, self.hidden_dps, strict=True)):
            output, hidden = rnn(output, state[layer])
            new_state.append(hidden)
            if layer != self.n_layers - 1:
                output = dropout(output)
        return output, new_state

    def zero_state(self, num_rows: int) -> Hidden:
        def zeros(width: int) -> Tensor:
            return self.encoder.weight.new_zeros(1, num_rows, width)

        return [(zeros(rnn.module.hidden_size), zeros(rnn.module.hidden_size)) for rnn in self.rnns]

    def layer_groups(self) -> list[nn.Module]:
        return list(self.rnns)
