"""Cross-entropy of a linear decoder that never materializes all logits.

A step of 64 x 72 tokens with a vocabulary of 60,000 has 1.1 GB of logits in fp32, and the same again for their gradient: on
a CPU they take most of the step's time, on a GPU most of its memory. Here the tokens are processed in chunks, and the
gradients are computed in the same pass, while a chunk's logits are in the cache. This takes three matrix products and three
passes over the logits: the bias is an additional column of the weight, multiplied by a feature that is always 1, so the
products include the bias and its gradient. On a GPU the passes are one kernel (`softmax_gradient.py`), and the products
accumulate the weight's gradient in fp32. Trade-off: backward through the loss can run only once.

N: tokens, E: width of the embedding, F: the same with the bias, V: vocabulary, n: tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.data.batches import IGNORED
from ulmfit_dist.models.softmax_gradient import add_product, softmax_gradient_on

CHUNK_TOKENS = {"cpu": 256, "cuda": 2048}
"""Tokens per chunk, by device type; on a GPU for two bytes of memory per logit, and fewer if a logit takes more. Smaller
chunks read and write the weight's gradient more often; larger ones gain little."""
SCORED_TOKENS = {"cpu": 256, "cuda": 512}
"""Tokens per chunk of `DecoderLoss.score`, whose logits are copied to fp32, by device type."""
FP16_GRADIENT_SCALE = 256.0
"""Factor of the logits' gradient in fp16 on a GPU: a probability of 1 / 60,000 is subnormal in fp16."""
ALIGNED = 8
"""Multiple to which the number of features with the bias is padded, for fast matrix products."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross-entropies of `x @ weight.T + bias`."""

    @staticmethod
    def forward(ctx: Any, x_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, y_N: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.scale = FP16_GRADIENT_SCALE if x_NE.is_cuda and dtype == torch.float16 else 1.0
        with torch.autocast(x_NE.device.type, enabled=False):
            if x_NE.is_cuda:
                total, *gradients = _on_gpu(x_NE, weight_VE, bias_V, y_N, dtype, ctx.scale)
            else:
                total, *gradients = _loss_and_gradients(x_NE, weight_VE, bias_V, y_N, dtype)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_grad_NE, weight_grad_VE, bias_grad_V = ctx.saved_tensors
        grad = grads[0] if ctx.scale == 1 else grads[0] / ctx.scale
        return x_grad_NE * grad, weight_grad_VE * grad, bias_grad_V * grad, None, None


_linear_cross_entropy: Callable[..., Tensor] = _LinearCrossEntropy.apply


def _loss_and_gradients(
    x_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, y_N: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width, master = x_NE.shape[1], weight_VE.dtype
    x_NF, weight_VF = _with_bias(x_NE.detach(), weight_VE.detach(), bias_V.detach(), dtype)
    weight_low = weight_VF[:, :width]
    x_grad_NE, weight_grad_VF = torch.empty_like(x_NE), torch.zeros_like(weight_VF, dtype=master)
    total, chunks = bias_V.new_zeros(()), _chunks(y_N, CHUNK_TOKENS["cpu"])
    shape = (max(chunk.stop - chunk.start for chunk in chunks), len(weight_VF))  # memory for all chunks, one after the other
    low_nV, log_p_nV = x_NF.new_empty(shape), x_NE.new_empty(shape)
    full_nV = low_nV if dtype == master else x_NE.new_empty(shape)
    for chunk in chunks:
        y_n1 = y_N[chunk][:, None]
        low, full, log_p = low_nV[: len(y_n1)], full_nV[: len(y_n1)], log_p_nV[: len(y_n1)]
        logits = torch.mm(x_NF[chunk], weight_VF.t(), out=low)
        torch.log_softmax(logits if dtype == master else full.copy_(logits), 1, out=log_p)
        total -= log_p.gather(1, y_n1).sum()
        gradient = torch.exp(log_p, out=full)
        gradient.scatter_add_(1, y_n1, gradient.new_full((1, 1), -1).expand(len(y_n1), 1))
        if dtype == master:
            torch.mm(gradient, weight_low, out=x_grad_NE[chunk])
            weight_grad_VF.addmm_(gradient.t(), x_NF[chunk])
        else:
            x_grad_NE[chunk] = low.copy_(gradient) @ weight_low
            weight_grad_VF += low.t() @ x_NF[chunk]
    return total, x_grad_NE, weight_grad_VF[:, :width], weight_grad_VF[:, width]


def _on_gpu(
    x_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, y_N: Tensor, dtype: torch.dtype, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_loss_and_gradients`, with gradients multiplied by `scale` and as few passes over the logits as possible."""
    width = x_NE.shape[1]
    x_NF, weight_VF = _with_bias(x_NE.detach(), weight_VE.detach(), bias_V.detach(), dtype)
    weight_low = weight_VF[:, :width]
    x_grad_NE, weight_grad_VF = torch.empty_like(x_NE), torch.empty_like(weight_VF, dtype=weight_VE.dtype)
    softmax_gradient, bytes_per_logit = softmax_gradient_on(x_NE.device.type, dtype)
    chunks = _chunks(y_N, CHUNK_TOKENS["cuda"] * 2 // bytes_per_logit)
    low_nV = x_NF.new_empty(max(chunk.stop - chunk.start for chunk in chunks), len(weight_VF))
    losses_N = x_NE.new_empty(len(y_N), dtype=torch.float32)
    for number, chunk in enumerate(chunks):
        logits = torch.mm(x_NF[chunk], weight_VF.t(), out=low_nV[: chunk.stop - chunk.start])
        softmax_gradient(logits, y_N[chunk], losses_N[chunk], scale)
        if x_grad_NE.dtype == dtype:
            torch.mm(logits, weight_low, out=x_grad_NE[chunk])
        else:
            x_grad_NE[chunk] = logits @ weight_low
        add_product(weight_grad_VF, logits.t(), x_NF[chunk], number == 0)
    return losses_N.sum().to(bias_V.dtype), x_grad_NE, weight_grad_VF[:, :width], weight_grad_VF[:, width]


def _with_bias(x_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return inputs [N, F] and weight [V, F] with the bias as an additional feature, padded to `ALIGNED` features."""
    width = weight_VE.shape[1]
    added = ALIGNED - width % ALIGNED
    x_NF = F.pad(x_NE.to(dtype), (0, added))
    x_NF[:, width] = 1
    weight_VF = F.pad(weight_VE.to(dtype), (0, added))
    weight_VF[:, width] = bias_V
    return x_NF, weight_VF


class ActivationRegularization:
    """AR and TAR (Merity et al., 2017), as fastai's `RNNRegularizer`; a step of one token has no TAR.

    Args:
        alpha: weight of the mean square of the dropped-out output.
        beta: weight of the mean square of the raw output's change from token to token.
    """

    def __init__(self, alpha: float, beta: float):
        self.alpha, self.beta = alpha, beta

    def __call__(self, dropped_bTE: Tensor, raw_bTE: Tensor) -> Tensor:
        """Return the penalty to add to a mean loss, a scalar."""
        penalty = self.alpha * dropped_bTE.pow(2).mean()
        if raw_bTE.shape[1] > 1:
            penalty = penalty + self.beta * (raw_bTE[:, 1:] - raw_bTE[:, :-1]).pow(2).mean()
        return penalty


class Scores(NamedTuple):
    """Sums over tokens, float64 scalars; divide by `tokens` for means."""

    loss: Tensor
    correct: Tensor
    tokens: Tensor


class DecoderLoss:
    """Loss of a language model whose forward stops before its decoder (`networks.py`).

    Args:
        decoder: the last layer; its weight may be tied to the embedding.
        dtype: dtype of the three matrix products; sums and probabilities keep the dtype of the parameters.
    """

    def __init__(self, decoder: nn.Linear, dtype: torch.dtype):
        self.decoder, self.dtype = decoder, dtype

    def __call__(self, x_bTE: Tensor, y_bT: Tensor) -> Tensor:
        """Return the mean cross-entropy over all targets; differentiable once."""
        x_NE, y_N = x_bTE.flatten(0, 1), y_bT.flatten()
        total = _linear_cross_entropy(x_NE, self.decoder.weight, self.decoder.bias, y_N, self.dtype)
        return total / len(y_N)

    @torch.no_grad()
    def score(self, x_bTE: Tensor, y_bT: Tensor) -> Scores:
        """Return the summed cross-entropy, the correct tokens and the number of tokens; `IGNORED` targets do not count."""
        x_NE, y_N = x_bTE.flatten(0, 1).to(self.dtype), y_bT.flatten()
        weight_VE, bias_V = self.decoder.weight.to(self.dtype), self.decoder.bias
        loss, correct = bias_V.new_zeros((), dtype=torch.float64), bias_V.new_zeros((), dtype=torch.float64)
        with torch.autocast(x_NE.device.type, enabled=False):
            for chunk in _chunks(y_N, SCORED_TOKENS.get(y_N.device.type, SCORED_TOKENS["cuda"])):
                logits_nV = (x_NE[chunk] @ weight_VE.t()).to(bias_V.dtype) + bias_V
                loss += F.cross_entropy(logits_nV, y_N[chunk], ignore_index=IGNORED, reduction="none").double().sum()
                correct += (logits_nV.argmax(1) == y_N[chunk]).sum()
        return Scores(loss, correct, (y_N != IGNORED).sum().double())


def _chunks(y_N: Tensor, max_tokens: int) -> list[slice]:
    """Return slices of similar size: a small last chunk would be split over threads, so its rounding depends on them."""
    num_tokens = len(y_N)
    num_chunks = -(-num_tokens // max_tokens)
    ends = [num_tokens * (i + 1) // num_chunks for i in range(num_chunks)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


PRODUCT_DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16, "fp16": torch.float16}
