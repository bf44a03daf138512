"""fastai's dropouts, their masks computed from where they are used.

A mask is a function of seed, stage, step and place in the network; a row's mask of the row's number in the global batch,
too. So the rows of a batch are dropped alike whichever rank computes them, in whichever micro-batch, on a CPU or a GPU.
Weights and embeddings have one mask for all rows, and so the same one on all ranks.

Sixteen random bits decide on an element: a probability is rounded to a multiple of 2^-16, and what is kept is scaled by the
rounded one, so that the mean stays exact.

V: words of the vocabulary, b: rows of a micro-batch, T: tokens of a step, H: features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fastai.text.models import awdlstm
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.philox import Key, random_words
from ulmfit_dist.randomness import derive_key

LEVELS = 1 << 16
"""Probabilities that can be told apart."""
PER_BLOCK = 16
"""Elements that one block of the generator decides on."""


@dataclass
class Position:
    """Where a network is used: shared by its dropouts, and moved on by who trains it.

    Attributes:
        seed, stage, step: of the run, and the optimizer steps of the stage so far. Training needs a step to be set.
        chunk: which part of its documents the classifier's encoder reads.
        rows: numbers of the input's rows in the global batch.
    """

    seed: int = 0
    stage: str = ""
    step: int | None = None
    chunk: int = 0
    rows: range = range(0)

    def key(self, site: str) -> Key:
        """The key of the masks of one place in the network."""
        if self.step is None:
            raise RuntimeError(
                "dropout is computed from the step: set step and rows of encoder_of(model).position before it"
            )
        return derive_key(self.seed, self.stage, "dropout", self.step, self.chunk, site)


class RowDropout(nn.Module):
    """Dropout of features, for each row and the whole step: fastai's `RNNDropout`, and `nn.Dropout` on [b, H].

    Args:
        p: probability of an element to be dropped.
        site: the place in the network.
        position: where the network is used.
    """

    def __init__(self, p: float, site: str, position: Position):
        super().__init__()
        self.p, self.site, self.position = p, site, position

    def forward(self, x: Tensor) -> Tensor:
        """x: [b, T, H] or [b, H], of the rows `position.rows`, or the first of them."""
        if not self.training or self.p == 0:
            return x
        key, rows = self.position.key(self.site), self.position.rows[: len(x)]
        if (len(rows), len(x)) != (1, 2) and len(rows) != len(x):  # the encoder reads a single row as two
            raise RuntimeError(f"position.rows numbers {len(rows)} rows of an input of {len(x)}")
        mask_bH = row_mask(key, rows, x.shape[-1], self.p, x)
        return x * (mask_bH if x.dim() == 2 else mask_bH[:, None])

    def extra_repr(self) -> str:
        return f"p={self.p}, site={self.site!r}"


class WeightDropout(awdlstm.WeightDropout):
    """fastai's dropout of the hidden-to-hidden weights, one mask for all rows; a probability of zero is allowed."""

    def __init__(self, module: nn.Module, weight_p: float, site: str, position: Position):
        super().__init__(module, weight_p)
        self.site, self.position = site, position

    def forward(self, x_bTE: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the LSTM's output and state; on a GPU computed from flat weights, in the dtype of autocast."""
        self._setweights()
        if not x_bTE.is_cuda:
            return self.module(x_bTE, hidden)
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x_bTE.dtype
        return lstm_from_flat_weights(self.module, x_bTE, hidden, dtype)

    def _setweights(self) -> None:
        for name in self.layer_names:
            raw = getattr(self, f"{name}_raw")
            setattr(self.module, name, self._dropped(raw, name))

    def _dropped(self, raw: Tensor, name: str) -> Tensor:
        if not self.training or self.weight_p == 0:
            return raw.view_as(raw)  # not a parameter, for which torch keeps the name
        return raw * shared_mask(self.position.key(f"{self.site}.{name}"), raw.numel(), self.weight_p, raw).view_as(raw)

    def reset(self) -> None:
        """Nothing is kept between steps: the weights are set anew in each forward."""


class EmbeddingDropout(awdlstm.EmbeddingDropout):
    """fastai's dropout of whole words, one mask for all rows; only the words that are read are multiplied."""

    def __init__(self, emb: nn.Embedding, embed_p: float, site: str, position: Position):
        super().__init__(emb, embed_p)
        self.site, self.position = site, position

    def forward(self, words_bT: Tensor) -> Tensor:
        """[b, T, H] from token ids."""
        embedded_bTH = F.embedding(words_bT, self.emb.weight, self.emb.padding_idx)
        if not self.training or self.embed_p == 0:
            return embedded_bTH
        mask_V = shared_mask(self.position.key(self.site), len(self.emb.weight), self.embed_p, embedded_bTH)
        return embedded_bTH * mask_V[words_bT][..., None]


def lstm_from_flat_weights(
    lstm: nn.LSTM, x_bTE: Tensor, hidden: tuple[Tensor, Tensor], dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Compute an LSTM in `dtype`, its weights side by side in one tensor: cuDNN copies scattered weights in each call.

    `nn.LSTM.forward` gathers its attributes again where one of them was replaced, as dropped-out weights are, so the
    operator is called without it. Autocast is off, because it computes LSTMs in fp16 whatever its dtype is.

    Args:
        hidden: h and c, each [1, b, H].

    Returns:
        The output [b, T, H] and the last (h, c), in `dtype`.
    """
    weights = [getattr(lstm, name) for name in lstm._flat_weights_names]
    options = (lstm.bias, lstm.num_layers, lstm.dropout, lstm.training, lstm.bidirectional, lstm.batch_first)
    with torch.autocast(x_bTE.device.type, enabled=False):
        flat = torch.cat([weight.flatten().to(dtype) for weight in weights])
        pieces = [p.view_as(w) for p, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]
        output, h, c = torch._VF.lstm(x_bTE.to(dtype), [part.to(dtype) for part in hidden], pieces, *options)
    return output, (h, c)


def row_mask(key: Key, rows: range, num_features: int, p: float, like: Tensor) -> Tensor:
    """[b, H] of zeros and 1 / (1 - p), in type and on device of `like`: each row's own, whatever the others are."""
    blocks_per_row = -(-num_features // PER_BLOCK)
    span = rows[-1] - rows[0] + 1
    words = random_words(key, rows[0] * blocks_per_row, span * blocks_per_row, like.device)
    bits = words.view(torch.int16).view(span, -1)[:: rows.step, :num_features]
    return _mask(bits, p, like)


def shared_mask(key: Key, num_elements: int, p: float, like: Tensor) -> Tensor:
    """[num_elements] of zeros and 1 / (1 - p), in type and on device of `like`."""
    words = random_words(key, 0, -(-num_elements // PER_BLOCK), like.device)
    return _mask(words.view(torch.int16).flatten()[:num_elements], p, like)


def _mask(bits: Tensor, p: float, like: Tensor) -> Tensor:
    dropped = min(round(p * LEVELS), LEVELS - 1)
    return (bits >= dropped - LEVELS // 2).to(like.dtype).mul_(LEVELS / (LEVELS - dropped))
