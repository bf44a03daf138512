"""fastai's AWD-LSTM: its state is kept by row (`encoder.py`), dropout masks are computed from their position (`dropout.py`).

b: rows of a micro-batch, T: tokens of a step, E: width of the embedding.
"""

from __future__ import annotations

from typing import Any

from fastai.text.models import awdlstm
from torch import Tensor, nn

from ulmfit_dist.config.schema import ModelConfig
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.models.dropout import DropoutContext, EmbeddingDropout, RowDropout, WeightDropout
from ulmfit_dist.models.encoder import Encoder, Hidden


class AWDLSTM(Encoder, awdlstm.AWD_LSTM):
    """fastai's encoder: same modules, same keys, same sums.

    Args:
        vocab_size: V.
        model: sizes of the network.
        dropouts: `embed_p`, `input_p`, `hidden_p` and `weight_p`, probabilities.
    """

    n_layers: int
    rnns: Any
    hidden_dps: Any
    input_dp: RowDropout
    encoder_dp: EmbeddingDropout

    def __init__(self, vocab_size: int, model: ModelConfig, dropouts: dict[str, float]):
        self.position = DropoutContext()
        awdlstm.AWD_LSTM.__init__(self, vocab_size, model.emb_sz, model.n_hid, model.n_layers, PAD_ID, **dropouts)
        self.encoder_dp = EmbeddingDropout(self.encoder, dropouts["embed_p"], "embedding", self.position)
        self.input_dp = RowDropout(dropouts["input_p"], "input", self.position)
        self.hidden_dps = nn.ModuleList(
            RowDropout(dropouts["hidden_p"], f"hidden {layer}", self.position) for layer in range(self.n_layers)
        )

    def read(self, x_bT: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        output = self.input_dp(self.encoder_dp(x_bT))
        carried: Hidden = []
        for layer, (rnn, dropout) in enumerate(zip(self.rnns, self.hidden_dps, strict=True)):
            output, hidden = rnn(output, state[layer])
            carried.append(hidden)
            if layer != self.n_layers - 1:
                output = dropout(output)
        return output, carried

    def zero_state(self, num_rows: int) -> Hidden:
        self.bs = num_rows
        return [self._one_hidden(layer) for layer in range(self.n_layers)]  # type: ignore[operator]

    def layer_groups(self) -> list[nn.Module]:
        return list(self.rnns)

    def _one_rnn(self, n_in: int, n_out: int, bidir: bool, weight_p: float, layer: int) -> WeightDropout:
        lstm = nn.LSTM(n_in, n_out, batch_first=True, bidirectional=bidir)
        return WeightDropout(lstm, weight_p, f"weights {layer}", self.position)
