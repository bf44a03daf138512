"""Cross-entropy with its gradient in place of the logits, and matrix products accumulated in fp32, for `DecoderLoss`.

On a GPU each is one kernel, which is compiled at run time and compared with torch's operations; without a compiler those
operations are used. Trade-off: the first use in a process takes seconds.

n: tokens of a chunk, V: vocabulary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ulmfit_dist.cuda.compile import (
    CompilationError,
    compile_function,
    compile_source,
    messages,
    try_compilers,
    warn_of_slow,
)
from ulmfit_dist.utils.memory import is_out_of_memory

SoftmaxGradient = Callable[[Tensor, Tensor, Tensor, float], object]
"""Function of logits [n, V], targets int64 [n], losses fp32 [n] and a factor. It writes the cross-entropy of each row to the
losses, and `(softmax - onehot) * factor` to the logits."""

DEFINES = {torch.float32: "LOGITS_FP32", torch.float16: "LOGITS_FP16", torch.bfloat16: "LOGITS_BF16"}
"""Macro by dtype in `cuda/softmax_gradient.cu`."""
NAME = "softmax gradients"


def softmax_gradient_on(device_type: str, dtype: torch.dtype) -> tuple[SoftmaxGradient, int]:
    """Return the function for logits of a dtype, and its memory per logit, in bytes, the logit included."""
    compiled = _kernel(device_type, dtype)
    if compiled is not None:
        return compiled, dtype.itemsize
    return softmax_gradient, dtype.itemsize + (0 if dtype == torch.float32 else 4)


@torch.no_grad()
def softmax_gradient(logits_nV: Tensor, y_n: Tensor, losses_n: Tensor, scale: float) -> None:
    """Compute by torch's operations: softmax in fp32, rounded to the dtype of the logits at the end."""
    y_n1 = y_n[:, None]
    log_p_nV = torch.log_softmax(wide := logits_nV.float(), 1, out=wide)
    log_p_n1 = log_p_nV.gather(1, y_n1)
    torch.neg(log_p_n1[:, 0], out=losses_n)
    torch.exp(log_p_nV if scale == 1 else log_p_nV.add_(math.log(scale)), out=logits_nV)
    logits_nV.scatter_(1, y_n1, (torch.expm1(log_p_n1) * scale).to(logits_nV.dtype))


def _by_inductor(logits_nV: Tensor, y_n: Tensor, losses_n: Tensor, scale: Tensor) -> None:
    """As `softmax_gradient`, in a form that `torch.compile` fuses to one kernel: without scatter, the factor a tensor."""
    log_p_nV = torch.log_softmax(logits_nV.float(), 1)
    losses_n.copy_(-log_p_nV.gather(1, y_n[:, None])[:, 0])
    is_target_nV = torch.arange(logits_nV.shape[1], device=y_n.device) == y_n[:, None]
    logits_nV.copy_(torch.where(is_target_nV, torch.expm1(log_p_nV), torch.exp(log_p_nV)) * scale)


@functools.cache
def _kernel(device_type: str, dtype: torch.dtype) -> SoftmaxGradient | None:
    """Return the kernel for logits of a dtype; None to use torch's operations.

    A simulated GPU replaces this function by one that returns an equivalent of `softmax_gradient`.
    """
    if device_type != "cuda" or dtype not in DEFINES:
        return None
    device = torch.device(device_type)
    kernel = try_compilers(
        NAME,
        ("NVRTC", lambda: _from_nvrtc(dtype, device)),
        ("torch.compile", lambda: _from_inductor(dtype, device)),
    )
    if kernel is None:
        warn_of_slow(NAME)
    return kernel


def _from_nvrtc(dtype: torch.dtype, device: torch.device) -> SoftmaxGradient:
    """Compile the kernel, and compare its results with those of torch's operations."""
    launch = compile_source("softmax_gradient", f"-D{DEFINES[dtype]}")

    def kernel(logits_nV: Tensor, y_n: Tensor, losses_n: Tensor, scale: float) -> None:
        assert all(tensor.is_contiguous() for tensor in (logits_nV, y_n, losses_n))
        launch(len(logits_nV), [logits_nV, y_n, losses_n, logits_nV.shape[1], float(scale)])

    _compare(kernel, dtype, device)
    return kernel


def _from_inductor(dtype: torch.dtype, device: torch.device) -> SoftmaxGradient:
    logits, y = torch.zeros(5, 1021, dtype=dtype, device=device), torch.zeros(5, dtype=torch.int64, device=device)
    arguments = [logits, y, torch.zeros(5, device=device), torch.ones((), device=device)]
    compiled = compile_function(_by_inductor, arguments)

    def kernel(logits_nV: Tensor, y_n: Tensor, losses_n: Tensor, scale: float) -> None:
        with torch.no_grad():
            compiled(logits_nV, y_n, losses_n, torch.full((), scale, device=y_n.device))

    _compare(kernel, dtype, device)
    return kernel


def _compare(kernel: SoftmaxGradient, dtype: torch.dtype, device: torch.device) -> None:
    """Raise CompilationError if a kernel differs from torch's operations by more than two units in the last place."""
    for num_words in (1000, 1003):  # rows that begin at a multiple of 16 bytes, and others
        logits = torch.linspace(-9, 9, 4 * num_words).view(num_words, 4).t().contiguous().to(device, dtype)
        y, results = torch.arange(0, 400, 100, device=device), []
        for function in (softmax_gradient, kernel):
            gradient, losses = logits.clone(), torch.empty(4, device=device)
            function(gradient, y, losses, 8.0)
            results.append((losses.cpu(), gradient.float().cpu()))
        for expected, computed in zip(*results, strict=True):
            limit = 2 * torch.finfo(torch.float32 if expected is results[0][0] else dtype).eps
            if not (computed - expected).norm() <= max(limit, 1e-5) * expected.norm():
                raise CompilationError("its results differ from those of torch's operations")


def add_product(total: Tensor, a: Tensor, b: Tensor, is_first: bool) -> None:
    """Add `a @ b` to a matrix of the same or a wider dtype, or overwrite the matrix if it is the first product."""
    beta = 0 if is_first else 1
    if total.dtype == a.dtype:
        torch.addmm(total, a, b, beta=beta, out=total)
    elif _accumulates(total.device.type):
        torch.addmm(total, a, b, out_dtype=total.dtype, beta=beta, out=total)
    else:
        product = a.float() @ b.float() if a.dtype == torch.float16 else a @ b  # a sum over tokens may overflow in fp16
        if is_first:
            total.copy_(product)
        else:
            total += product


@functools.cache
def _accumulates(device_type: str) -> bool:
    """Return whether products of bf16 or fp16 can be added to fp32 in one call (cuBLAS can; a CPU's products cannot)."""
    total, low = torch.zeros(8, 8, device=device_type), torch.zeros(8, 8, dtype=torch.float16, device=device_type)
    try:
        torch.addmm(total, low, low, out_dtype=torch.float32, out=total)
    except (NotImplementedError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise  # not a missing feature
        messages.append(f"weight gradients: products are not accumulated in fp32: {str(error).splitlines()[0]}")
        return False
    return True
