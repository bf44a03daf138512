"""fastai's language model and text classifier on an encoder, for batches that are split over ranks and micro-batches.

Modules, `state_dict` keys and sums are fastai's. The forward differs: the encoder keeps hidden states per row, so that
micro-batches can alternate; dropout masks are computed from their position (`dropout.py`); the language model's forward
stops before the decoder, which is fused with the loss (`fused_cross_entropy.py`); the part of a document that is not pooled
is computed without a graph (fastai detaches it, so the gradients are the same). Two bugs of fastai's are fixed, by which a
document's result depends on the others in its batch, and so on the number of ranks: see `SentenceEncoder` and
`PoolingLinearClassifier`.

b: rows of a micro-batch, T: tokens of a step, E: width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ulmfit_dist.config.schema import ClassifierConfig, LMConfig, ModelConfig
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.models.awd_lstm import AWDLSTM, INITIAL_RANGE
from ulmfit_dist.models.dropout import DropoutContext, RowDropout
from ulmfit_dist.models.encoder import Encoder
from ulmfit_dist.models.layers import SequentialRNN, SigmoidRange, head_block, reset_hidden_states
from ulmfit_dist.models.registry import make_encoder

LM_DROPOUTS = {"output_p": 0.1, "hidden_p": 0.15, "input_p": 0.25, "embed_p": 0.02, "weight_p": 0.2}
CLASSIFIER_DROPOUTS = {"output_p": 0.4, "hidden_p": 0.3, "input_p": 0.4, "embed_p": 0.05, "weight_p": 0.5}
"""fastai's dropout probabilities, to be multiplied by `drop_mult`."""


class SentenceEncoder(nn.Module):
    """fastai's encoder of whole documents, longest first: in chunks, each computed for the rows that have tokens in it.

    The last chunk is computed for all rows. fastai computes it for as many rows as have a token at its first position, but
    takes the first rows, so in some batches it omits the last tokens of a document.

    Args:
        bptt: tokens of a chunk.
        module: encoder of a chunk.
        pad_idx: id of padding.
        max_len: minimum number of tokens at the end of a document whose output is pooled; None: all.
    """

    def __init__(self, bptt: int, module: Encoder, pad_idx: int, max_len: int | None):
        super().__init__()
        self.bptt, self.module, self.pad_idx, self.max_len = bptt, module, pad_idx, max_len

    def reset(self) -> None:
        reset_hidden_states(self.module)

    def first_pooled(self, num_tokens: int) -> int:
        """Return the position of the first token of an input of this length whose output is pooled: that of a chunk."""
        if self.max_len is None or num_tokens <= self.max_len:
            return 0
        return -(-(num_tokens - self.max_len) // self.bptt) * self.bptt

    def forward(
        self, x_bT: Tensor, chunk_rows: Sequence[int] | None = None, perturbation_bTE: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the output of the pooled tokens, [b, T, E], and their padding mask, [b, T].

        Args:
            x_bT: token ids; padded at the beginning by whole chunks.
            chunk_rows: number of rows per chunk, from the loader (`MicroBatch`). None: counted in `x_bT`, for which the CPU
                waits for a GPU.
            perturbation_bTE: added to the embeddings of the pooled tokens. None: nothing.
        """
        num_rows, num_tokens = x_bT.shape
        self.reset()
        padding_bT = x_bT == self.pad_idx
        if chunk_rows is None:
            chunk_rows = [*(~padding_bT[:, :: self.bptt]).sum(0).tolist()[:-1], num_rows]
        outputs: list[Tensor | None] = []
        first_kept = self.first_pooled(num_tokens)
        for chunk, (start, rows) in enumerate(zip(range(0, num_tokens, self.bptt), chunk_rows, strict=True)):
            self.module.position.chunk = chunk
            kept = start >= first_kept
            output = None
            if rows:
                if kept and perturbation_bTE is not None:
                    begin = start - first_kept
                    self.module.perturbation = perturbation_bTE[:rows, begin : begin + self.bptt]
                with torch.set_grad_enabled(kept and torch.is_grad_enabled()):
                    output = self.module(x_bT[:rows, start : start + self.bptt])
                self.module.perturbation = None
            if kept:
                outputs.append(output)
        return _stack(outputs, num_rows, self.bptt), padding_bT[:, first_kept:]


class PoolingLinearClassifier(nn.Module):
    """fastai's head on the last, maximum and mean output of a document.

    fastai finds the last output by counting the padding in the last `bptt` positions. For a document shorter than that in a
    batch with longer ones, it also counts the padding before the document, and takes the output of a padding position.

    Args:
        widths: features of the input, of the hidden layers and of the output.
        dropouts: probability of a feature to be dropped before each layer.
        position: position of the forward pass.
        y_range: minimum and maximum output; None: no limits.
    """

    def __init__(
        self,
        widths: list[int],
        dropouts: list[float],
        position: DropoutContext,
        y_range: tuple[float, float] | None = None,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        activations = [nn.ReLU(inplace=True)] * (len(dropouts) - 1)
        for number, ((n_in, n_out), p) in enumerate(zip(pairwise(widths), dropouts, strict=True)):
            dropout = RowDropout(p, f"head {number}", position) if p else None
            layers.append(head_block(n_in, n_out, dropout, activations[number] if number < len(activations) else None))
        if y_range is not None:
            layers.append(SigmoidRange(*y_range))
        self.layers = nn.Sequential(*layers)

    def forward(self, encoded: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return (logits [b, outputs], output, output) for the encoder's output [b, T, E] and its padding mask [b, T]."""
        output_bTE, padding_bT = encoded
        return self.layers(concat_pool(output_bTE, padding_bT)), output_bTE, output_bTE


class LinearDecoder(nn.Module):
    """fastai's decoder, except that the loss computes the product with the vocabulary."""

    def __init__(self, encoder: Encoder, output_p: float):
        super().__init__()
        vocab_size, width = encoder.encoder.weight.shape
        self.decoder = nn.Linear(width, vocab_size)
        nn.init.uniform_(self.decoder.weight, -INITIAL_RANGE, INITIAL_RANGE)  # overwritten below, but fastai draws it
        nn.init.zeros_(self.decoder.bias)
        self.decoder.weight = encoder.encoder.weight
        self.output_dp = RowDropout(output_p, "output", encoder.position)

    def forward(self, x_bTE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (input of the loss, raw output, dropped-out output), each [b, T, E]."""
        dropped_bTE = self.output_dp(x_bTE)
        return dropped_bTE, x_bTE, dropped_bTE


def build_language_model(vocab_size: int, model: ModelConfig, settings: LMConfig) -> SequentialRNN:
    """Return an encoder and a tied decoder with initial weights; keys as in fastai's `get_language_model`."""
    dropouts = _dropouts(LM_DROPOUTS, settings.drop_mult)
    output_p = dropouts.pop("output_p")
    encoder = make_encoder(vocab_size, model, dropouts)
    return SequentialRNN(encoder, LinearDecoder(encoder, output_p))


def build_classifier(vocab_size: int, num_outputs: int, model: ModelConfig, settings: ClassifierConfig) -> SequentialRNN:
    """Return an encoder and a pooling head with initial weights; keys as in fastai's `get_text_classifier`."""
    dropouts = _dropouts(CLASSIFIER_DROPOUTS, settings.drop_mult)
    output_p = dropouts.pop("output_p")
    encoder = make_encoder(vocab_size, model, dropouts)
    widths = [model.emb_sz * 3, *settings.lin_ftrs, num_outputs]
    head_dropouts = [output_p] + [settings.head_dropout] * len(settings.lin_ftrs)
    y_range = None if settings.y_range is None else (settings.y_range[0], settings.y_range[1])
    head = PoolingLinearClassifier(widths, head_dropouts, encoder.position, y_range)
    return SequentialRNN(SentenceEncoder(settings.seq_len, encoder, PAD_ID, settings.max_len), head)


def lm_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameter groups of fastai's `awd_lstm_lm_split`: layers, lowest first; embedding and decoder."""
    embedding, layers = _groups_of_encoder(model)
    return [*layers, _distinct([*embedding, *model[1].parameters()])]  # type: ignore[index]


def classifier_groups(model: nn.Module) -> list[list[nn.Parameter]]:
    """Return the parameter groups of fastai's `awd_lstm_clas_split`: embedding, layers, head."""
    embedding, layers = _groups_of_encoder(model)
    return [embedding, *layers, list(model[1].parameters())]  # type: ignore[index]


def encoder_of(model: nn.Module) -> Encoder:
    """Return the encoder of a language model or a classifier, which may be wrapped for training."""
    first = _bare(_bare(model)[0])  # type: ignore[index]
    encoder = first.module if isinstance(first, SentenceEncoder) else first
    assert isinstance(encoder, Encoder)
    return encoder


def awd_lstm_of(model: nn.Module) -> AWDLSTM:
    """Return the encoder of a model without `model.arch`."""
    encoder = encoder_of(model)
    assert isinstance(encoder, AWDLSTM)
    return encoder


def _groups_of_encoder(model: nn.Module) -> tuple[list[nn.Parameter], list[list[nn.Parameter]]]:
    """Return the parameters outside of the layers, such as the embedding, and those of each layer."""
    encoder = encoder_of(model)
    layers = [list(layer.parameters()) for layer in encoder.layer_groups()]
    in_layers = {parameter for layer in layers for parameter in layer}
    return [parameter for parameter in encoder.parameters() if parameter not in in_layers], layers


def _distinct(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return list(dict.fromkeys(parameters))


def _bare(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, DistributedDataParallel) else module


def _dropouts(probabilities: dict[str, float], drop_mult: float) -> dict[str, float]:
    return {name: p * drop_mult for name, p in probabilities.items()}


def concat_pool(output_bTE: Tensor, padding_bT: Tensor) -> Tensor:
    """Return last, maximum and mean of each document's outputs, [b, 3E] (Howard & Ruder, 2018, section 3.3)."""
    text_bT = ~padding_bT
    positions_T = torch.arange(text_bT.shape[1], device=text_bT.device)
    last_b = (positions_T * text_bT).amax(1)
    last_bE = output_bTE[torch.arange(len(output_bTE), device=last_b.device), last_b]
    max_bE = output_bTE.masked_fill(padding_bT[:, :, None], -torch.inf).amax(1)
    mean_bE = output_bTE.masked_fill(padding_bT[:, :, None], 0).sum(1) / text_bT.sum(1, keepdim=True)
    return torch.cat([last_bE, max_bE, mean_bE], dim=1)


def _stack(outputs: list[Tensor | None], num_rows: int, bptt: int) -> Tensor:
    """Return the chunks side by side, [b, T, E], with zeros for rows without tokens in a chunk."""
    last = outputs[-1]
    assert last is not None  # the last chunk is computed for all rows
    empty = last.new_zeros(0, bptt, last.shape[2])
    pieces = [empty if output is None else output for output in outputs]
    return torch.cat([F.pad(piece, (0, 0, 0, 0, 0, num_rows - len(piece))) for piece in pieces], dim=1)
