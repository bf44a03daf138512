"""User-defined encoder instead of AWD-LSTM: gated recurrent units (GRUs) with the dropouts of this package.

    model: {arch: examples.custom_encoder.GRUEncoder, arch_kwargs: {bias: true}, emb_sz: 200, n_hid: 400, n_layers: 2}

Language model, classifier, checkpoints and all commands work as with AWD-LSTM, except the exports to fastai and ONNX. Its
dropout masks are computed from positions, so it trains to the same weights on any number of ranks.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from ulmfit_dist.config.schema import ModelConfig
from ulmfit_dist.models.dropout import EmbeddingDropout, RowDropout
from ulmfit_dist.models.encoder import Encoder, Hidden


class GRUEncoder(Encoder):
    """Layers of GRUs. The last is as wide as the embedding, whose weights the language model's decoder shares."""

    def __init__(self, vocab_size: int, model: ModelConfig, dropouts: dict[str, float], bias: bool = True):
        super().__init__()
        widths = [model.emb_sz, *[model.n_hid] * (model.n_layers - 1), model.emb_sz]
        self.encoder = nn.Embedding(vocab_size, model.emb_sz, padding_idx=1)
        self.encoder.weight.data.uniform_(-0.1, 0.1)
        self.rnns = nn.ModuleList(nn.GRU(n_in, n_out, bias=bias, batch_first=True) for n_in, n_out in pairwise(widths))
        self.embedding_dropout = EmbeddingDropout(self.encoder, dropouts["embed_p"], "embedding", self.position)
        self.dropouts = nn.ModuleList(
            RowDropout(dropouts["hidden_p"], f"hidden {layer}", self.position) for layer in range(model.n_layers - 1)
        )

    def read(self, x_bT: Tensor, state: Hidden) -> tuple[Tensor, Hidden]:
        output, carried = self.embedding_dropout(x_bT), Hidden()
        for layer, rnn in enumerate(self.rnns):
            output, hidden = rnn(output, *state[layer])
            carried.append((hidden,))
            if layer < len(self.dropouts):
                output = self.dropouts[layer](output)
        return output, carried

    def zero_state(self, num_rows: int) -> Hidden:
        return [(self.encoder.weight.new_zeros(1, num_rows, rnn.hidden_size),) for rnn in self.rnns]

    def layer_groups(self) -> list[nn.Module]:
        return list(self.rnns)
