"""Philox4x64-10: a counter-based random number generator.

256 random bits are a function of a counter (256 bits) and a key (128 bits): ten rounds of multiplication and mixing (Salmon,
Moraes, Dror & Shaw, 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4). So any process can compute the numbers
of any other process or step. This variant is numpy's, which computes it in C on a CPU. On a GPU a kernel computes the same
integers (`cuda/dropout_masks.cu`). The trade-off: where the kernel cannot be compiled, torch computes them, more slowly,
because it has no unsigned 64-bit arithmetic and products are assembled from halves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ulmfit_dist.cuda.compile import compile_function, try_compilers, warn_of_slow

Key = tuple[int, int]
"""Two unsigned 64-bit integers."""

ROUNDS = 10
"""Rounds of the generator."""
MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
"""Multipliers of a round."""
KEY_INCREMENTS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
"""Increments of the key per round."""
_HALF = (1 << 32) - 1
_WHOLE = (1 << 64) - 1


def random_words(key: Key, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the random numbers of the counters `first` to `first + count` (exclusive), equal on every device.

    Args:
        key: key of one of 2^128 streams.
        first: first counter, from 0 to 2^63 - 1.

    Returns:
        int64 [count, 4], 64 random bits each.
    """
    device = torch.device(device)
    if device.type == "cpu":
        before = (first - 1) % (1 << 256)  # numpy increments the counter before it computes
        counter = [before >> shift & _WHOLE for shift in (0, 64, 128, 192)]
        generator = np.random.Philox(counter=np.array(counter, np.uint64), key=np.array(key, np.uint64))
        return torch.from_numpy(generator.random_raw(4 * count).view(np.int64)).view(count, 4)
    counters = torch.arange(first, first + count, device=device)
    keys = torch.empty(2, count, dtype=torch.int64, device=device)
    for row, word in zip(keys, key, strict=True):
        row.fill_(signed(word))  # a tensor built from numbers would be copied to the GPU synchronously
    return words_of(counters, keys)


def words_of(counter_n: Tensor, key_2n: Tensor) -> Tensor:
    """Return the random numbers of counters below 2^63 with one key each, on a GPU: int64 [n, 4]."""
    counter_4n = torch.zeros(4, len(counter_n), dtype=torch.int64, device=counter_n.device)
    counter_4n[0] = counter_n
    with torch.no_grad(), torch.autocast(counter_n.device.type, enabled=False):  # else it is compiled again for each mode
        return _kernel(counter_n.device.type)(counter_4n, key_2n)


def philox(counter: Tensor, key: Tensor) -> Tensor:
    """Compute the generator with torch operations, on any device.

    Args:
        counter: int64 [4, n], lowest word first.
        key: int64 [2], or [2, n] for one key per counter.

    Returns:
        int64 [n, 4].
    """
    c0, c1, c2, c3 = counter
    for i in range(ROUNDS):
        k0, k1 = (word + signed(i * increment) for word, increment in zip(key, KEY_INCREMENTS, strict=True))
        high0, low0 = _product(c0, MULTIPLIERS[0])
        high1, low1 = _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return torch.stack([c0, c1, c2, c3], dim=1)


def _product(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """Return the high and low 64 bits of an unsigned product."""
    a_high, a_low = (a >> 32) & _HALF, a & _HALF
    b_high, b_low = b >> 32, b & _HALF
    cross0, cross1 = a_high * b_low, a_low * b_high
    carry = (((a_low * b_low) >> 32) & _HALF) + (cross0 & _HALF) + (cross1 & _HALF)
    high = a_high * b_high + ((cross0 >> 32) & _HALF) + ((cross1 >> 32) & _HALF) + (carry >> 32)
    return high, a * signed(b)


@functools.cache
def _kernel(device_type: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `philox` for a device type: on a GPU one compiled kernel, or about 500 small ones without a compiler.

    The simulated GPU of the tests replaces this function; its result has the parameters of `philox`. Dropout masks use it
    only if `models/masks.py` has no kernel.
    """
    if device_type != "cuda":
        return philox
    counter_4n, key_2n = (torch.zeros(words, 1021, dtype=torch.int64, device="cuda") for words in (4, 2))
    compiled = try_compilers("dropout masks", ("torch.compile", lambda: compile_function(philox, [counter_4n, key_2n])))
    if compiled is None:
        warn_of_slow("dropout masks")
    return compiled or philox


def signed(word: int) -> int:
    """Return the bits of an unsigned 64-bit word as a signed integer, as torch represents them."""
    word &= _WHOLE
    return word - (1 << 64) if word >> 63 else word
