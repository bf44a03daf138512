"""Randomness as a function of position.

Nothing here has a state. A number is computed from what it is for (seed, stage, epoch, ...), never drawn from a stream
that ranks or restarts advance differently, so any rank can compute any other's, and a resumed run computes the same.
The price is one hash per use in place of one generator per process.
"""

from __future__ import annotations

import numpy as np
import torch
import xxhash
from torch import Tensor

from ulmfit_dist.rng.philox import Key, random_words


def derive_seed(*position: int | str) -> int:
    """A 63-bit seed from a position such as `(seed, "lm", epoch)`: equal positions give equal seeds."""
    return xxhash.xxh3_64_intdigest(_name(position)) >> 1


def derive_key(*position: int | str) -> Key:
    """The key of a position's own stream of Philox numbers."""
    key = xxhash.xxh3_128_intdigest(_name(position))
    return key >> 64, key & ((1 << 64) - 1)


def permutation(n: int, *position: int | str) -> np.ndarray:
    """A permutation of `range(n)` (int64) that depends on the position alone.

    It sorts raw Philox words (Salmon et al., 2011), whose stream numpy guarantees from version to version, as it does
    not for its own `permutation`.
    """
    words = np.random.Philox(key=derive_seed(*position)).random_raw(n)
    return np.argsort(words, kind="stable")


def uniform(n: int, *position: int | str) -> Tensor:
    """Numbers from 0 to 1, float64 [n], on the CPU: 53 random bits each."""
    words = random_words(derive_key(*position), 0, -(-n // 4)).flatten()[:n]
    return ((words >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def seed_torch(*position: int | str) -> None:
    """Seed torch's own generators, which initial weights are drawn from."""
    torch.manual_seed(derive_seed(*position))


def _name(position: tuple[int | str, ...]) -> bytes:
    return "/".join(map(str, position)).encode()
