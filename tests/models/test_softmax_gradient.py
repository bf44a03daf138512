"""The fused kernel of the loss, by each of the ways in which a GPU may compute it, against autograd in fp64."""

from functools import partial

import cuda_on_cpu
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ulmfit_dist.cuda.compile import CompilationError
from ulmfit_dist.models import fused_cross_entropy as loss_module
from ulmfit_dist.models import softmax_gradient as module

LIMITS = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
"""Relative to the norm of the gradient: fp32's, or half a unit in the last place of what a gradient is rounded to."""

needs_compiler = pytest.mark.skipif(not cuda_on_cpu.HAS_COMPILER, reason="no g++ is installed")


def kernel_of(how: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> module.SoftmaxGradient:
    if how == "torch":
        return module.softmax_gradient
    if how == "inductor":  # its graph, computed without the seconds that a compilation takes
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        return module._from_inductor(dtype, torch.device("cpu"))
    monkeypatch.setattr(module, "compile_source", cuda_on_cpu.compile_source)
    return module._from_nvrtc(dtype, torch.device("cpu"))


cuda = pytest.param("cuda", marks=[needs_compiler, pytest.mark.distributed])
ways = pytest.mark.parametrize("how", ["torch", "inductor", cuda])
dtypes = pytest.mark.parametrize("dtype", LIMITS)


@ways
@dtypes
@pytest.mark.parametrize("num_words", [64, 1003, 3])  # rows that begin at a multiple of 16 bytes, others, fewer than threads
def test_loss_and_gradient_are_autograds(how: str, dtype: torch.dtype, num_words: int, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    logits, y, scale = (3 * torch.randn(9, num_words)).to(dtype), torch.randint(0, num_words, (9,)), 4.0
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, y, reduction="none")
    expected.sum().backward()
    losses = torch.empty(9)
    kernel_of(how, dtype, monkeypatch)(logits, y, losses, scale)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    assert (logits.double() / scale - exact.grad).norm() <= LIMITS[dtype] * exact.grad.norm()


@ways
@dtypes
def test_extreme_logits_give_finite_losses_and_nan_gives_nan(how: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    logits = torch.zeros(4, 40, dtype=dtype)
    logits[0, 3], logits[1], logits[2, 5], logits[3, 7] = 60_000, -60_000, -torch.inf, torch.nan
    losses = torch.empty(4)
    kernel_of(how, dtype, monkeypatch)(logits, torch.full((4,), 3), losses, 1.0)
    expected = torch.tensor([0, 40, 39]).log().clamp_min(0)
    torch.testing.assert_close(losses[:3], expected)
    assert losses[3].isnan()
    assert logits[:3].isfinite().all()


@ways
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_the_gpu_branch_of_the_loss_is_autograds(
    how: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
):
    """In three chunks, of a vocabulary large enough that a mean probability is no normal number in fp16."""
    num_words = 20_000
    kernel = None if how == "torch" else kernel_of(how, dtype, monkeypatch)
    monkeypatch.setattr(module, "_kernel", lambda device_type, dtype: kernel)
    monkeypatch.setitem(loss_module.CHUNK_TOKENS, "cuda", 8 * module.softmax_gradient_on("cpu", dtype)[1] // 2)
    torch.manual_seed(0)
    decoder, x, y = nn.Linear(20, num_words), torch.randn(17, 20), torch.randint(0, num_words, (17,))
    inputs = (x.requires_grad_(), decoder.weight, decoder.bias)
    exact = F.cross_entropy(x.double() @ decoder.weight.double().T + decoder.bias.double(), y, reduction="sum")
    expected = torch.autograd.grad(exact, inputs)
    scale = loss_module.FP16_GRADIENT_SCALE if dtype == torch.float16 else 1
    assert len(loss_module._chunks(y, 8)) == 3
    total, *gradients = loss_module._on_gpu(*inputs, y, dtype, scale)
    assert total.item() == pytest.approx(exact.item(), rel=tolerance / 2)
    for actual, wanted in zip(gradients, expected, strict=True):
        assert (actual / scale - wanted).norm() <= tolerance * wanted.norm()


def test_a_chunk_takes_the_memory_that_it_is_allowed():
    """Two bytes for each logit of CHUNK_TOKENS: fewer tokens where logits take more."""
    for dtype, num_bytes in ((torch.float32, 4), (torch.bfloat16, 6), (torch.float16, 6)):
        assert module.softmax_gradient_on("cpu", dtype) == (module.softmax_gradient, num_bytes)


def test_a_product_is_added_to_what_is_there_unless_it_is_the_first():
    total, a, b = torch.full((3, 4), torch.nan), torch.randn(3, 5), torch.randn(5, 4)
    for wide, low in ((total.clone(), torch.float32), (total.clone(), torch.bfloat16)):
        module.add_product(wide, a.to(low), b.to(low), True)
        module.add_product(wide, a.to(low), b.to(low), False)
        torch.testing.assert_close(wide, 2 * (a.to(low) @ b.to(low)).float())


@dtypes
def test_a_kernel_that_computes_something_else_is_refused(dtype: torch.dtype):
    def wrong(logits: torch.Tensor, y: torch.Tensor, losses: torch.Tensor, scale: float) -> None:
        module.softmax_gradient(logits, y, losses, scale)
        logits[2, 7] += 0.1 * scale

    with pytest.raises(CompilationError, match="its results differ"):
        module._compare(wrong, dtype, torch.device("cpu"))


@pytest.mark.distributed
@needs_compiler
@pytest.mark.parametrize("target", [-100, 40])
def test_a_target_that_is_no_word_gives_nan_and_is_not_read(target: int, monkeypatch: pytest.MonkeyPatch):
    losses = torch.empty(2)
    kernel_of("cuda", torch.float32, monkeypatch)(torch.zeros(2, 40), torch.tensor([target, 3]), losses, 1.0)
    assert losses[0].isnan()
    assert losses[1].item() == pytest.approx(torch.tensor(40.0).log().item())


@pytest.mark.parametrize("is_first", [True, False])
def test_products_that_overflow_in_fp16_are_added_in_fp32(is_first: bool):
    total, ones = torch.full((8, 8), 5.0), torch.full((8, 2048), 8.0, dtype=torch.float16)
    module.add_product(total, ones, ones.t(), is_first)
    assert total.unique().tolist() == [131_072.0 + (0 if is_first else 5)]


def test_a_trial_without_memory_is_no_verdict(monkeypatch: pytest.MonkeyPatch):
    def fails(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "addmm", fails)
    with pytest.raises(torch.OutOfMemoryError):
        module._accumulates.__wrapped__("cpu")
