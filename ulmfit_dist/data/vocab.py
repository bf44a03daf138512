"""Vocabulary: tokens by id, fastai's order, fastai's padding.

A vocabulary is a plain list of tokens; a token's place is its id. The special tokens come first, `xxunk` at 0 and
`xxpad` at 1, then the rest by falling count, ties in the order of first occurrence, filled up with `xxfake` to a multiple
of eight.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ulmfit_dist.errors import UserError

UNK_ID = 0
PAD_ID = 1
FILLER = "xxfake"


class LocalVocab:
    """Ids by order of first occurrence, given out while tokens pass by, with their counts."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.counts: list[int] = []

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Ids of the tokens; each is counted."""
        encoded = []
        for token in tokens:
            i = self.ids.setdefault(token, len(self.ids))
            if i == len(self.counts):
                self.counts.append(0)
            self.counts[i] += 1
            encoded.append(i)
        return encoded


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
