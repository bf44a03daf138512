"""fastai's AWD-LSTM, language model and classifier, fit for rows that are computed in pieces.

The networks are fastai's: same modules, same `state_dict` keys, same sums. They run differently: hidden states are kept by
row, so micro-batches take turns; dropout masks are computed from where they are used (`model/dropout.py`); the language
model's forward stops before the decoder, which the loss fuses (`model/loss.py`); the encoder reads the part of a document
that is not pooled without keeping a graph (fastai detaches it, so the gradients are the same). And two slips are mended by
which a document's outcome depended on the others in its batch, and so on the number of ranks: see `SentenceEncoder` and
`PoolingLinearClassifier`.

b: rows of a micro-batch, T: tokens of a step, E: width of the embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from fastai.text.models import awdlstm, core
from fastai.text.models.awdlstm import awd_lstm_clas_config, awd_lstm_lm_config
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ulmfit_dist.config import ClassifierConfig, LMConfig, ModelConfig
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.model.dropout import EmbeddingDropout, Position, RowDropout, WeightDropout

Hidden = list[tuple[Tensor, Tensor]]


class AWDLSTM(awdlstm.AWD_LSTM):
    """fastai's encoder, with a hidden state for each piece of the rows.

    Attributes:
        position: where the next input stands: `position.rows` says whose hidden state to go on with.
        hidden_states: (h, c) of each layer, [1, b, width], by first row; a row that is not there begins with zeros.
    """

    def __init__(self, vocab_size: int, model: ModelConfig, dropouts: dict[str, float]):
        self.position = Position()
        super().__init__(vocab_size, model.emb_sz, model.n_hid, model.n_layers, PAD_ID, **dropouts)
        self.encoder_dp = EmbeddingDropout(self.encoder, dropouts["embed_p"], "embedding", self.position)
        self.input_dp = RowDropout(dropouts["input_p"], "input", self.position)
        self.hidden_dps = nn.ModuleList(
            RowDropout(dropouts["hidden_p"], f"hidden {layer}", self.position) for layer in range(self.n_layers)
        )

    def reset(self) -> None:
        self.hidden_states: dict[int, Hidden] = {}

    def forward(self, x_bT: Tensor, from_embeds: bool = False) -> Tensor:
        num_rows = len(x_bT)
        if num_rows == 1 and self.training:  # a product with a single row is split over threads, and rounds by their number
            x_bT = torch.cat([x_bT, x_bT])
        hidden = self._hidden(len(x_bT))
        output = self.input_dp(x_bT if from_embeds else self.encoder_dp(x_bT))
        carried: Hidden = []
        for layer, (rnn, dropout) in enumerate(zip(self.rnns, self.hidden_dps, strict=True)):
            output, (h, c) = rnn(output, hidden[layer])
            carried.append((h[:, :num_rows].detach(), c[:, :num_rows].detach()))
            if layer != self.n_layers - 1:
                output = dropout(output)
        self.hidden_states[self.position.rows.start] = carried
        return output[:num_rows]

    def _one_rnn(self, n_in: int, n_out: int, bidir: bool, weight_p: float, layer: int) -> WeightDropout:
        lstm = nn.LSTM(n_in, n_out, batch_first=True, bidirectional=bidir)
        return WeightDropout(lstm, weight_p, f"weights {layer}", self.position)

    def _hidden(self, num_rows: int) -> Hidden:
        """The state to go on with, cut or filled up with zeros to the rows of the input."""
        known = self.hidden_states.get(self.position.rows.start)
        if known is None:
            self.bs = num_rows
            return [self._one_hidden(layer) for layer in range(self.n_layers)]
        return [(_fit_rows(h, num_rows), _fit_rows(c, num_rows)) for h, c in known]


class SentenceEncoder(core.SentenceEncoder):
    """fastai's encoder of whole documents, longest first: in chunks, each read by the rows that have begun.

    The last chunk is read by all rows. fastai reads it by as many rows as have a token there, but takes the first ones,
    so in some batches it never reads the last words of a document.
    """

    def forward(self, x_bT: Tensor) -> tuple[Tensor, Tensor]:
        num_rows, num_tokens = x_bT.shape
        self.reset()
        padding_bT = x_bT == self.pad_idx
        begun = [*(~padding_bT[:, :: self.bptt]).sum(0).tolist()[:-1], num_rows]
        outputs: list[Tensor | None] = []
        first_kept = 0
        for chunk, (start, rows) in enumerate(zip(range(0, num_tokens, self.bptt), begun, strict=True)):
            self.module.position.chunk = chunk
            kept = self.max_len is None or num_tokens - start <= self.max_len
            output = None
            if rows:
                with torch.set_grad_enabled(kept and torch.is_grad_enabled()):
                    output = self.module(x_bT[:rows, start : start + self.bptt])
            if kept:
                outputs.append(output)
            else:
                first_kept = start + self.bptt
        return _stack(outputs, num_rows, self.bptt), padding_bT[:, first_kept:]


class PoolingLinearClassifier(core.PoolingLinearClassifier):
    """fastai's head on the last, the highest and the mean output of a document.

    fastai looks for the last one by counting the padding in the last `bptt` positions; for a document shorter than that,
    among longer ones, it counts the padding in front too, and takes the output of a position before the document.
    """

    def __init__(
        self,
        widths: list[int],
        dropouts: list[float],
        bptt: int,
        position: Position,
        y_range: tuple[float, float] | None = None,
    ):
        super().__init__(widths, dropouts, bptt, y_range)
        for number, block in enumerate(self.layers):
            for name, layer in block.named_children():
                if isinstance(layer, nn.Dropout):
                    setattr(block, name, RowDropout(layer.p, f"head {number}", position))

    def forward(self, encoded: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(logits [b, outputs], output, output) from the encoder's output [b, T, E] and its padding mask [b, T]."""
        output_bTE, padding_bT = encoded
        return self.layers(concat_pool(output_bTE, padding_bT)), output_bTE, output_bTE


class LinearDecoder(core.LinearDecoder):
    """fastai's decoder, which leaves the product with the vocabulary to the loss."""

    def __init__(self, encoder: AWDLSTM, output_p: float):
        super().__init__(*encoder.encoder.weight.shape, output_p, tie_encoder=encoder.encoder)
        self.output_dp = RowDropout(output_p, "output", encoder.position)

    def forward(self, x_bTE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(what to decode, raw output, dropped-out output), each [b, T, E]."""
        dropped_bTE = self.output_dp(x_bTE)
        return dropped_bTE, x_bTE, dropped_bTE


def build_language_model(vocab_size: int, model: ModelConfig, settings: LMConfig) -> core.SequentialRNN:
    """Encoder and tied decoder with fresh weights; keys as in fastai's `get_language_model`."""
    dropouts = _dropouts(awd_lstm_lm_config, settings.drop_mult)
    output_p = dropouts.pop("output_p")
    encoder = AWDLSTM(vocab_size, model, dropouts)
    return core.SequentialRNN(encoder, LinearDecoder(encoder, output_p))


def build_classifier(
    vocab_size: int, num_outputs: int, model: ModelConfig, settings: ClassifierConfig
) -> core.SequentialRNN:
    """Encoder and pooling head with fresh weights; keys as in fastai's `get_text_classifier`."""
    dropouts = _dropouts(awd_lstm_clas_config, settings.drop_mult)
    output_p = dropouts.pop("output_p")
    encoder = AWDLSTM(vocab_size, model, dropouts)
    widths = [model.emb_sz * 3, *settings.lin_ftrs, num_outputs]
    head_dropouts = [output_p] + [settings.head_dropout] * len(settings.lin_ftrs)
    y_range = None if settings.y_range is None else (settings.y_range[0], settings.y_range[1])
    head = PoolingLinearClassifier(widths, head_dropouts, settings.seq_len, encoder.position, y_range)
    return core.SequentialRNN(SentenceEncoder(settings.seq_len, encoder, PAD_ID, settings.max_len), head)


def encoder_of(model: nn.Module) -> AWDLSTM:
    """The AWD-LSTM inside a language model or a classifier, also while they are wrapped for training."""
    first = _bare(_bare(model)[0])  # type: ignore[index]
    encoder = first.module if isinstance(first, SentenceEncoder) else first
    assert isinstance(encoder, AWDLSTM)
    return encoder


def _bare(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module


def _dropouts(config: dict[str, Any], drop_mult: float) -> dict[str, float]:
    return {key: value * drop_mult for key, value in config.items() if key.endswith("_p")}


def _fit_rows(state_1bH: Tensor, num_rows: int) -> Tensor:
    missing = num_rows - state_1bH.shape[1]
    return F.pad(state_1bH, (0, 0, 0, missing)) if missing > 0 else state_1bH[:, :num_rows].contiguous()


def concat_pool(output_bTE: Tensor, padding_bT: Tensor) -> Tensor:
    """Last, maximum and mean of each document's outputs, [b, 3E] (Howard & Ruder, 2018, section 3.3)."""
    text_bT = ~padding_bT
    positions_T = torch.arange(text_bT.shape[1], device=text_bT.device)
    last_b = (positions_T * text_bT).amax(1)
    last_bE = output_bTE[torch.arange(len(output_bTE), device=last_b.device), last_b]
    max_bE = output_bTE.masked_fill(padding_bT[:, :, None], -torch.inf).amax(1)
    mean_bE = output_bTE.masked_fill(padding_bT[:, :, None], 0).sum(1) / text_bT.sum(1, keepdim=True)
    return torch.cat([last_bE, max_bE, mean_bE], dim=1)


def _stack(outputs: list[Tensor | None], num_rows: int, bptt: int) -> Tensor:
    """Chunks side by side, [b, T, E]; zeros for rows that had not begun."""
    last = outputs[-1]
    assert last is not None  # all rows read the last chunk
    empty = last.new_zeros(0, bptt, last.shape[2])
    pieces = [empty if output is None else output for output in outputs]
    return torch.cat([F.pad(piece, (0, 0, 0, 0, 0, num_rows - len(piece))) for piece in pieces], dim=1)
