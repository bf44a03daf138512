"""Recurrence of a QRNN layer by the means of PyTorch: one operator per token, blocks of tokens, a scan of logarithmic depth.

    python -m benchmarks.scans

Forward, fp32, 72 tokens, 1152 features, activations already computed. All give the same values within rounding.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import machine

NUM_TOKENS, WIDTH, ROUNDS = 72, 1152, 21
BLOCK = 8
"""Tokens per block: all blocks are computed side by side, then one after the other from their first states."""


def sequential(z_TbH: Tensor, f_TbH: Tensor, output_TbH: Tensor) -> Tensor:
    """Compute one fused operator per token, as `ulmfit_dist.models.forget_mult` does."""
    h_bH = torch.zeros_like(output_TbH[0])
    for z_bH, f_bH, out_bH in zip(z_TbH.unbind(), f_TbH.unbind(), output_TbH.unbind(), strict=True):
        h_bH = torch.lerp(h_bH, z_bH, f_bH, out=out_bH)
    return output_TbH


def blocked(z_TbH: Tensor, f_TbH: Tensor, output_TbH: Tensor) -> Tensor:
    h_TbH, kept_TbH = f_TbH * z_TbH, 1 - f_TbH
    h_NnbH, kept_NnbH = (tensor.unflatten(0, (-1, BLOCK)) for tensor in (h_TbH, kept_TbH))
    for i in range(1, BLOCK):
        h_NnbH[:, i].addcmul_(kept_NnbH[:, i], h_NnbH[:, i - 1])
        kept_NnbH[:, i].mul_(kept_NnbH[:, i - 1])
    for block in range(1, len(h_NnbH)):
        h_NnbH[block].addcmul_(kept_NnbH[block], h_NnbH[block - 1, -1])
    return h_TbH


def logarithmic(z_TbH: Tensor, f_TbH: Tensor, output_TbH: Tensor) -> Tensor:
    """Compute Hillis and Steele's scan."""
    h_TbH, kept_TbH = f_TbH * z_TbH, 1 - f_TbH
    distance = 1
    while distance < len(h_TbH):
        h_TbH = torch.cat([h_TbH[:distance], torch.addcmul(h_TbH[distance:], kept_TbH[distance:], h_TbH[:-distance])])
        kept_TbH = torch.cat([kept_TbH[:distance], kept_TbH[distance:] * kept_TbH[:-distance]])
        distance *= 2
    return h_TbH


METHODS: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [sequential, blocked, logarithmic]


def main() -> None:
    print(machine())
    print(f"{'rows':<8}" + "".join(f"{method.__name__:>16}" for method in METHODS) + "   median ms")
    for num_rows in (1, 16, 64):
        z_TbH = torch.randn(NUM_TOKENS, num_rows, WIDTH).tanh_()
        f_TbH, output_TbH = torch.rand_like(z_TbH), torch.empty_like(z_TbH)
        expected = sequential(z_TbH, f_TbH, output_TbH).clone()
        durations: list[list[float]] = [[] for _ in METHODS]
        for _ in range(ROUNDS):
            for method, own in zip(METHODS, durations, strict=True):
                begin = time.perf_counter()
                actual = method(z_TbH, f_TbH, output_TbH)
                own.append(1000 * (time.perf_counter() - begin))
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        print(f"{num_rows:<8}" + "".join(f"{statistics.median(own):>16.3f}" for own in durations))


if __name__ == "__main__":
    main()
