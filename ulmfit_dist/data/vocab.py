"""Vocabulary: tokens by id, in fastai's order, with fastai's padding.

A vocabulary is a plain list of tokens; the index of a token is its id. Special tokens come first, `xxunk` at 0 and `xxpad`
at 1, then the others by descending count, ties in order of first occurrence, padded with `xxfake` to a multiple of eight.
Counts of shards are Arrow tables, not `Counter`s, so millions of distinct tokens fit in memory; the trade-off is less
obvious code.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ulmfit_dist.data.tokenizers.rules import SPECIAL_TOKENS
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import read_bounded

UNK_ID = 0
"""Id of xxunk."""
PAD_ID = 1
"""Id of xxpad."""
FILLER = "xxfake"
"""Token that pads the vocabulary."""
LONGEST_VOCAB = 1 << 28
"""Maximum size of a vocabulary file, in bytes."""


class StringIndexer(defaultdict[str, int]):
    """Mapping from strings to indices, assigned from 0 in order of first occurrence when a string is looked up."""

    def __init__(self) -> None:
        super().__init__(count().__next__)  # a bound method would make a cycle, and keep millions of strings in memory

    def of(self, strings: Sequence[str]) -> np.ndarray:
        """Return the index of each string, int64."""
        return np.fromiter(map(self.__getitem__, strings), dtype=np.int64, count=len(strings))

    def since(self, number: int) -> list[str]:
        """Return the strings with indices from `number` on, in order."""
        return list(islice(reversed(self), len(self) - number))[::-1]


class LocalIds(NamedTuple):
    """Local ids of a shard.

    Attributes:
        ids: ids in order of first occurrence in the shard, uint32 [tokens].
        counts: token and count by id.
    """

    ids: np.ndarray
    counts: pa.Table


def token_counts(tokens: Sequence[str], counts: Sequence[int] | np.ndarray) -> pa.Table:
    """Return a table of tokens (large_string) and their counts (int64)."""
    return pa.table({"token": pa.array(tokens, pa.large_string()), "count": pa.array(counts, pa.int64())})


def localize(ids: np.ndarray, tokens: Sequence[str]) -> LocalIds:
    """Return ids renumbered by first occurrence, so that they do not depend on texts encoded before."""
    counts = np.bincount(ids, minlength=len(tokens))
    first = np.full(len(tokens), len(ids))
    first[ids[::-1]] = np.arange(len(ids))[::-1]  # the last of several writes to an index wins
    present = np.flatnonzero(counts)
    present = present[np.argsort(first[present])]
    number = np.zeros(len(tokens), dtype=np.uint32)
    number[present] = np.arange(len(present))
    return LocalIds(number[ids], token_counts([tokens[i] for i in present.tolist()], counts[present]))


def build_vocab(counts: Counter[str], min_freq: int, max_vocab: int) -> list[str]:
    """fastai's `make_vocab` over the counts; tokens that occur less than `min_freq` times may be missing from them."""
    frequent = [token for token, count in counts.most_common(max_vocab) if count >= min_freq]
    vocab = [*SPECIAL_TOKENS, *(token for token in frequent if token not in SPECIAL_TOKENS)][:max_vocab]
    return vocab + [FILLER] * (8 - len(vocab) % 8)


def known_tokens(vocab: Sequence[str]) -> pa.Array:
    """Return a vocabulary for `id_map`: tokens by id, with null for the filler, so xxfake in a text is an unknown word."""
    return pa.array([None if token == FILLER else token for token in vocab], pa.large_string())


def id_map(tokens: pa.ChunkedArray, known: pa.Array) -> np.ndarray:
    """Return the id of each token in `known_tokens`, uint32; `UNK_ID` for unknown tokens."""
    ids: np.ndarray = pc.index_in(tokens, value_set=known).fill_null(UNK_ID).to_numpy().astype(np.uint32)
    return ids


def token_ids(vocab: Sequence[str]) -> dict[str, int]:
    """Return ids by token, without the filler."""
    return {token: i for i, token in enumerate(vocab) if token != FILLER}


def load_vocab(path: Path) -> list[str]:
    """Read a list of strings, such as `vocab.json`. Raises UserError if the file is missing or has other content."""
    try:
        vocab = json.loads(read_bounded(path, LONGEST_VOCAB))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a list ({error})") from None
    if not isinstance(vocab, list) or not all(isinstance(token, str) for token in vocab):
        raise UserError(f"{path}: expected a list of strings")
    return vocab
