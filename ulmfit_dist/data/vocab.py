"""Vocabulary: tokens by id, fastai's order, fastai's padding.

A vocabulary is a plain list of tokens; a token's place is its id. The special tokens come first, `xxunk` at 0 and
`xxpad` at 1, then the rest by falling count, ties in the order of first occurrence, filled up with `xxfake` to a multiple
of eight.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ulmfit_dist.errors import UserError

UNK_ID = 0
PAD_ID = 1
FILLER = "xxfake"


class TokenIds:
    """Ids by order of first occurrence, given out while tokens pass by."""

    itemsize = 4

    def __init__(self) -> None:
        self._ids: defaultdict[str, int] = defaultdict()
        self._ids.default_factory = self._ids.__len__

    @property
    def tokens(self) -> list[str]:
        """Token by id."""
        return list(self._ids)

    def is_full(self, num_tokens: int) -> bool:
        return len(self._ids) > num_tokens

    def encode(self, tokens: Sequence[str]) -> bytes:
        """Ids of the tokens, as the bytes of a uint32 array."""
        return array("I", map(self._ids.__getitem__, tokens)).tobytes()


class LocalIds(NamedTuple):
    """A shard's ids, numbered by first occurrence in the shard: uint32 [tokens]; and its tokens and their counts by id."""

    ids: np.ndarray
    tokens: list[str]
    counts: list[int]


def localize(ids: np.ndarray, tokens: Sequence[str]) -> LocalIds:
    """Number ids anew by first occurrence, so that they do not depend on what was encoded before them."""
    counts = np.bincount(ids, minlength=len(tokens))
    first = np.full(len(tokens), len(ids))
    first[ids[::-1]] = np.arange(len(ids))[::-1]  # of several writes to a place the last one stays
    present = np.flatnonzero(counts)
    present = present[np.argsort(first[present])]
    number = np.zeros(len(tokens), dtype=np.uint32)
    number[present] = np.arange(len(present))
    return LocalIds(number[ids], [tokens[i] for i in present.tolist()], counts[present].tolist())


def add_counts(total: Counter[str], tokens: Sequence[str], counts: Sequence[int]) -> None:
    """Add a shard's counts. Shards added in the order of the documents keep the order of first occurrence."""
    for token, count in zip(tokens, counts, strict=True):
        total[token] += count


def build_vocab(counts: Counter[str], min_freq: int, max_vocab: int) -> list[str]:
    """fastai's `make_vocab` over the counts."""
    from fastai.text.data import make_vocab

    return make_vocab(counts, min_freq=min_freq, max_vocab=max_vocab)


def id_map(tokens: Sequence[str], vocab: Sequence[str]) -> np.ndarray:
    """Id in the vocabulary of each token (int64); `UNK_ID` for tokens that it does not have."""
    known = token_ids(vocab)
    return np.fromiter((known.get(token, UNK_ID) for token in tokens), dtype=np.int64, count=len(tokens))


def token_ids(vocab: Sequence[str]) -> dict[str, int]:
    """Id by token. The filler has none: a text that says xxfake says an unknown word."""
    return {token: i for i, token in enumerate(vocab) if token != FILLER}


def load_vocab(path: Path) -> list[str]:
    """Read a list of strings, as `vocab.json`. Raises UserError for a file that is missing or holds something else."""
    try:
        vocab = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a list ({error})") from None
    if not isinstance(vocab, list) or not all(isinstance(token, str) for token in vocab):
        raise UserError(f"{path}: expected a list of strings")
    return vocab
