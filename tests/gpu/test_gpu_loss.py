"""Tests of the language model's fused loss on a GPU against plain autograd. Skipped without a GPU."""

import pytest
import torch
from small_runs import DEVICE, IS_SIMULATED, needs_cuda, needs_gpu, without_tf32
from torch import Tensor, nn
from torch.nn import functional as F

from ulmfit_dist.models.fused_cross_entropy import DecoderLoss

pytestmark = needs_gpu

E = 400


def step_of(num_rows: int, num_tokens: int, vocab_size: int) -> tuple[Tensor, Tensor, nn.Linear]:
    """Return the input of a decoder [b, T, E], its targets [b, T], and the decoder [V, E]."""
    torch.manual_seed(0)
    decoder = nn.Linear(E, vocab_size)
    x_bTE, y_bT = torch.randn(num_rows, num_tokens, E), torch.randint(0, vocab_size, (num_rows, num_tokens))
    return x_bTE.to(DEVICE).requires_grad_(), y_bT.to(DEVICE), decoder.to(DEVICE)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)])
def test_loss_and_gradients_are_those_of_autograd(dtype: torch.dtype, limit: float):
    x, y, decoder = step_of(8, 36, 20_011)
    inputs = (x, decoder.weight, decoder.bias)
    with without_tf32():
        logits = x.flatten(0, 1) @ decoder.weight.T + decoder.bias
        expected = F.cross_entropy(logits, y.flatten())
        gradients = torch.autograd.grad(expected, inputs)
        actual = DecoderLoss(decoder, dtype)(x, y)
        actual.backward()
    assert relative_error(actual.detach(), expected.detach()) < limit
    for tensor, gradient in zip(inputs, gradients, strict=True):
        assert tensor.grad.dtype == torch.float32
        assert relative_error(tensor.grad, gradient) < limit


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_logits_of_a_large_vocabulary_never_exist(dtype: torch.dtype):
    x, y, decoder = step_of(2, 2, 100)
    DecoderLoss(decoder, dtype)(x, y).backward()  # what cuBLAS keeps from its first product on is not the loss's
    vocab_size = 6_000 if IS_SIMULATED else 60_000
    x, y, decoder = step_of(64, 72, vocab_size)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    DecoderLoss(decoder, dtype)(x, y).backward()
    used, logits = torch.cuda.max_memory_allocated() - before, 64 * 72 * vocab_size * 4
    assert used < 0.6 * logits  # most of it for the gradient of the weight
