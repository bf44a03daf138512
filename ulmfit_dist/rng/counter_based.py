"""Counter-based randomness: random numbers as a function of their position.

There is no state. A number is computed from its purpose (seed, stage, epoch, ...), never drawn from a stream that ranks or
restarts advance differently. So every rank can compute the numbers of any other, and a resumed run computes the same ones.
The trade-off: one hash per use instead of one generator per process.
"""

from __future__ import annotations

import numpy as np
import torch
import xxhash
from torch import Tensor

from ulmfit_dist.rng.philox import Key, random_words


def derive_seed(*position: int | str) -> int:
    """Return a 63-bit seed for a position such as `(seed, "lm", epoch)`; equal positions give equal seeds."""
    return xxhash.xxh3_64_intdigest(_name(position)) >> 1


def derive_key(*position: int | str) -> Key:
    """Return the Philox key of a position, which selects its stream of random numbers."""
    key = xxhash.xxh3_128_intdigest(_name(position))
    return key >> 64, key & ((1 << 64) - 1)


def permutation(n: int, *position: int | str) -> np.ndarray:
    """Return a permutation of `range(n)`, int64 [n], that depends only on the position.

    It sorts raw Philox words (Salmon et al., 2011), whose stream is stable across numpy versions, unlike numpy's own
    `permutation`.
    """
    words = np.random.Philox(key=derive_seed(*position)).random_raw(n)
    return np.argsort(words, kind="stable")


def uniform(n: int, *position: int | str) -> Tensor:
    """Return uniform numbers in [0, 1), float64 [n] with 53 random bits each, on the CPU."""
    words = random_words(derive_key(*position), 0, -(-n // 4)).flatten()[:n]
    return ((words >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def seed_torch(*position: int | str) -> None:
    """Seed torch's own generators, from which initial weights are drawn."""
    torch.manual_seed(derive_seed(*position))


def _name(position: tuple[int | str, ...]) -> bytes:
    return "/".join(map(str, position)).encode()
