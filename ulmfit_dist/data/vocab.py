"""Vocabulary: tokens by id, fastai's order, fastai's padding.

A vocabulary is a plain list of tokens; a token's place is its id. The special tokens come first, `xxunk` at 0 and
`xxpad` at 1, then the rest by falling count, ties in the order of first occurrence, filled up with `xxfake` to a multiple
of eight.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress, count, islice, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ulmfit_dist.errors import UserError

UNK_ID = 0
PAD_ID = 1
FILLER = "xxfake"


class Numbers(defaultdict[str, int]):
    """Numbers from 0 by order of first occurrence, given out while strings are looked up."""

    def __init__(self) -> None:
        super().__init__(count().__next__)  # not a method of its own: millions of strings must go when the last name does

    def of(self, strings: Sequence[str]) -> np.ndarray:
        """The number of each string, int64."""
        return np.fromiter(map(self.__getitem__, strings), dtype=np.int64, count=len(strings))

    def since(self, number: int) -> list[str]:
        """The strings that came in from this number on, in order."""
        return list(islice(reversed(self), len(self) - number))[::-1]


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


def frequent_tokens(shards: Iterable[tuple[Sequence[str], Sequence[int]]], min_freq: int) -> Counter[str]:
    """Add up the tokens and counts of shards, and keep those that occur `min_freq` times.

    With the shards in the order of the documents, tokens are in that of first occurrence.
    """
    numbers, totals = Numbers(), np.zeros(0, dtype=np.int64)
    for tokens, counts in shards:
        places = numbers.of(tokens)
        totals = np.pad(totals, (0, len(numbers) - len(totals)))
        totals[places] += np.asarray(counts, dtype=np.int64)
    frequent = totals >= min_freq
    return Counter(dict(zip(compress(numbers, frequent.tolist()), totals[frequent].tolist(), strict=True)))


def build_vocab(counts: Counter[str], min_freq: int, max_vocab: int) -> list[str]:
    """fastai's `make_vocab` over the counts; tokens that occur less than `min_freq` times may be missing from them."""
    from fastai.text.data import make_vocab

    return make_vocab(counts, min_freq=min_freq, max_vocab=max_vocab)


def id_map(tokens: Sequence[str], known: Mapping[str, int]) -> np.ndarray:
    """Id of each token (int64) by `token_ids`; `UNK_ID` for tokens that it does not have."""
    return np.fromiter(map(known.get, tokens, repeat(UNK_ID)), dtype=np.int64, count=len(tokens))


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
