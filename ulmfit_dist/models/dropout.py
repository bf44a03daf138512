"""fastai's dropout layers, with masks computed from their position (`masks.py`).

A mask is a function of seed, stage, step and site in the network; a row's mask also depends on the row's number in the
global batch. So a row gets the same mask on every rank, in every micro-batch, on a CPU and on a GPU. Weights and embeddings
have one mask for all rows, which is the same on all ranks. Trade-off: the step and the rows must be set before a forward.

V: tokens of the vocabulary, b: rows of a micro-batch, T: tokens of a step, H: features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.models.masks import Mask, StepMasks, Use, compute_masks
from ulmfit_dist.rng.counter_based import derive_key
from ulmfit_dist.rng.philox import Key

RECURRENT = "weight_hh_l0"
"""Name of an LSTM's hidden-to-hidden weights."""


@dataclass
class DropoutContext:
    """Position of a forward pass: shared by the dropout layers of a network, and advanced by the training step.

    Attributes:
        seed: seed of the run.
        stage: name of the stage.
        step: optimizer steps of the stage so far; required in training.
        chunk: index of the chunk that the classifier's encoder reads.
        rows: numbers of the input's rows in the global batch.
    """

    seed: int = 0
    stage: str = ""
    step: int | None = None
    chunk: int = 0
    rows: range = range(0)
    _step_masks: StepMasks = field(default_factory=StepMasks, init=False, repr=False, compare=False)

    def key(self, site: str) -> Key:
        """Return the generator's key for the masks of a site in the network."""
        if self.step is None:
            raise RuntimeError(
                "dropout masks depend on the step: set step and rows of encoder_of(model).position before the forward"
            )
        return derive_key(self.seed, self.stage, "dropout", self.step, self.chunk, site)

    def noise_key(self, purpose: str) -> Key:
        """Return the generator's key for other random numbers of a step, whatever chunk was read last."""
        assert self.step is not None  # set by the training step
        return derive_key(self.seed, self.stage, purpose, self.step)

    def row_mask(self, site: str, rows: range, num_features: int, p: float, like: Tensor) -> Tensor:
        """Return the mask of the first rows of `rows`, [b, H]; on a GPU it is computed with the other masks of the step."""
        if like.device.type == "cpu":
            return row_mask(self.key(site), rows, num_features, p, like)
        return self._of_step(Use(site, num_features, p, like.dtype, True), like.device)[: len(rows)]

    def shared_mask(self, site: str, num_elements: int, p: float, like: Tensor) -> Tensor:
        """Return a mask for all rows, [num_elements]; on a GPU it is computed with the other masks of the step."""
        if like.device.type == "cpu":
            return shared_mask(self.key(site), num_elements, p, like)
        return self._of_step(Use(site, num_elements, p, like.dtype, False), like.device)[0]

    def _of_step(self, use: Use, device: torch.device) -> Tensor:
        def compute(uses: Sequence[Use]) -> list[Tensor]:
            return compute_masks([self._mask(use) for use in uses], device)

        return self._step_masks.get((self.seed, self.stage, self.step, self.chunk, self.rows, device), use, compute)

    def _mask(self, use: Use) -> Mask:
        rows = self.rows if use.per_row else range(1)
        return Mask(self.key(use.site), rows, use.num_features, use.p, use.dtype)


class RowDropout(nn.Module):
    """Dropout of features, one mask per row for the whole step: fastai's `RNNDropout`, and `nn.Dropout` on [b, H].

    Args:
        p: probability of an element to be dropped.
        site: site in the network.
        position: position of the forward pass.
    """

    def __init__(self, p: float, site: str, position: DropoutContext):
        super().__init__()
        self.p, self.site, self.position = p, site, position

    def forward(self, x: Tensor) -> Tensor:
        """Return x, [b, T, H] or [b, H], with dropout; its rows are `position.rows`, or the first of them."""
        if not self.training or self.p == 0:
            return x
        rows = self.position.rows[: len(x)]
        if (len(rows), len(x)) != (1, 2) and len(rows) != len(x):  # the encoder duplicates a single row
            raise RuntimeError(f"position.rows has {len(rows)} rows, but the input has {len(x)}")
        mask_bH = self.position.row_mask(self.site, rows, x.shape[-1], self.p, x)
        return x * (mask_bH if x.dim() == 2 else mask_bH[:, None])

    def extra_repr(self) -> str:
        return f"p={self.p}, site={self.site!r}"


class WeightDropout(nn.Module):
    """fastai's dropout of the hidden-to-hidden weights, one mask for all rows; the probability may be zero.

    The parameter is `weight_hh_l0_raw` of this module; `weight_hh_l0` of the LSTM is the parameter after dropout.

    Args:
        module: an LSTM with one layer.
        weight_p: probability of a weight to be dropped.
        site: site in the network.
        position: position of the forward pass.
    """

    def __init__(self, module: nn.LSTM, weight_p: float, site: str, position: DropoutContext):
        super().__init__()
        self.module, self.weight_p, self.site, self.position = module, weight_p, site, position
        weight: Tensor = getattr(module, RECURRENT)
        delattr(module, RECURRENT)
        self.weight_hh_l0_raw = nn.Parameter(weight.detach())
        setattr(module, RECURRENT, weight.clone())
        module.flatten_parameters = _keep_parameters  # type: ignore[method-assign]

    def forward(self, x_bTE: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the LSTM's output and state; on a GPU computed from flat weights, in the dtype of autocast."""
        self._setweights()
        if not x_bTE.is_cuda:
            output: tuple[Tensor, tuple[Tensor, Tensor]] = self.module(x_bTE, hidden)
            return output
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x_bTE.dtype
        return lstm_from_flat_weights(self.module, x_bTE, hidden, dtype)

    def _setweights(self) -> None:
        setattr(self.module, RECURRENT, self._dropped(self.weight_hh_l0_raw))

    def _dropped(self, raw: Tensor) -> Tensor:
        if not self.training or self.weight_p == 0:
            return raw.view_as(raw)  # a view: torch would register a parameter under this name
        mask = self.position.shared_mask(f"{self.site}.{RECURRENT}", raw.numel(), self.weight_p, raw)
        return raw * mask.view_as(raw)

    def reset(self) -> None:
        """Do nothing: each forward sets the weights, so no state is kept between steps."""


class LinearWeightDropout(nn.Module):
    """fastai's dropout of the weights of a linear layer, as its QRNN has it: one mask for all rows.

    The parameters are `weight_raw` of this module and the bias of the linear layer.

    Args:
        module: a linear layer, which loses its parameter `weight`.
        weight_p: probability of a weight to be dropped.
        site: site in the network.
        position: position of the forward pass.
    """

    def __init__(self, module: nn.Linear, weight_p: float, site: str, position: DropoutContext):
        super().__init__()
        self.module, self.weight_p, self.site, self.position = module, weight_p, site, position
        self.weight_raw = nn.Parameter(module.weight.detach())
        del module.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for x, [..., in_features], with dropout of its weights."""
        return F.linear(x, self._dropped(self.weight_raw), self.module.bias)

    def _dropped(self, raw: Tensor) -> Tensor:
        if not self.training or self.weight_p == 0:
            return raw
        return raw * self.position.shared_mask(f"{self.site}.weight", raw.numel(), self.weight_p, raw).view_as(raw)


class EmbeddingDropout(nn.Module):
    """fastai's dropout of whole tokens, one mask for all rows; only the rows of the embedding that are read are multiplied.

    Args:
        emb: the embedding.
        embed_p: probability of a token to be dropped.
        site: site in the network.
        position: position of the forward pass.
    """

    def __init__(self, emb: nn.Embedding, embed_p: float, site: str, position: DropoutContext):
        super().__init__()
        self.emb, self.embed_p, self.site, self.position = emb, embed_p, site, position

    def forward(self, ids_bT: Tensor) -> Tensor:
        """Return the embeddings of token ids with dropout, [b, T, H]."""
        embedded_bTH = F.embedding(ids_bT, self.emb.weight, self.emb.padding_idx)
        if not self.training or self.embed_p == 0:
            return embedded_bTH
        mask_V = self.position.shared_mask(self.site, len(self.emb.weight), self.embed_p, embedded_bTH)
        return embedded_bTH * mask_V[ids_bT][..., None]


def _keep_parameters() -> None:
    """Do nothing: replaces `flatten_parameters` of an LSTM whose weights change in each step."""


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
        flat = _flattened(dtype, *weights)
        pieces = [p.view_as(w) for p, w in zip(flat.split([w.numel() for w in weights]), weights, strict=True)]
        output, h, c = torch._VF.lstm(x_bTE.to(dtype), [part.to(dtype) for part in hidden], pieces, *options)
    return output, (h, c)


class _Flattened(torch.autograd.Function):
    """Tensors side by side in one of another dtype: one kernel copies and converts them, and one their gradients."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> Tensor:
        ctx.shapes, ctx.dtype = [tensor.shape for tensor in tensors], tensors[0].dtype
        flat = tensors[0].new_empty(sum(tensor.numel() for tensor in tensors), dtype=dtype)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_([p.view_as(t) for p, t in zip(pieces, tensors, strict=True)], list(tensors))
        return flat

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pieces = grads[0].to(ctx.dtype).split([shape.numel() for shape in ctx.shapes])
        return None, *(piece.view(shape) for piece, shape in zip(pieces, ctx.shapes, strict=True))


_flattened: Callable[..., Tensor] = _Flattened.apply


def row_mask(key: Key, rows: range, num_features: int, p: float, like: Tensor) -> Tensor:
    """Return a mask of 0 and 1 / (1 - p), [b, H], in dtype and on device of `like`; rows do not depend on each other."""
    return compute_masks([Mask(key, rows, num_features, p, like.dtype)], like.device)[0]


def shared_mask(key: Key, num_elements: int, p: float, like: Tensor) -> Tensor:
    """Return a mask of 0 and 1 / (1 - p), [num_elements], in dtype and on device of `like`."""
    return compute_masks([Mask(key, range(1), num_elements, p, like.dtype)], like.device)[0][0]
