"""Vocabulary: tokens by id, fastai's order, fastai's padding.

A vocabulary is a plain list of tokens; a token's place is its id. The special tokens come first, `xxunk` at 0 and
`xxpad` at 1, then the rest by falling count, ties in the order of first occurrence, filled up with `xxfake` to a multiple
of eight.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
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
PAD_ID = 1
FILLER = "xxfake"
LONGEST_VOCAB = 1 << 28
"""Bytes of a file of tokens that are read at most."""
COUNTS_AT_ONCE = 1_000_000
"""Counts of shards that are added up at once: some 30 MB."""


class StringIndexer(defaultdict[str, int]):
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
    """A shard's ids, numbered by first occurrence in the shard: uint32 [tokens]; and by id, each token and its count."""

    ids: np.ndarray
    counts: pa.Table


def token_counts(tokens: Sequence[str], counts: Sequence[int] | np.ndarray) -> pa.Table:
    """A table of tokens (large_string) and how often each occurs (int64)."""
    return pa.table({"token": pa.array(tokens, pa.large_string()), "count": pa.array(counts, pa.int64())})


def localize(ids: np.ndarray, tokens: Sequence[str]) -> LocalIds:
    """Number ids anew by first occurrence, so that they do not depend on what was encoded before them."""
    counts = np.bincount(ids, minlength=len(tokens))
    first = np.full(len(tokens), len(ids))
    first[ids[::-1]] = np.arange(len(ids))[::-1]  # of several writes to a place the last one stays
    present = np.flatnonzero(counts)
    present = present[np.argsort(first[present])]
    number = np.zeros(len(tokens), dtype=np.uint32)
    number[present] = np.arange(len(present))
    return LocalIds(number[ids], token_counts([tokens[i] for i in present.tolist()], counts[present]))


def frequent_tokens(shards: Iterable[pa.Table], min_freq: int) -> Counter[str]:
    """Add up the `token_counts` of shards, and keep the tokens that occur `min_freq` times.

    With the shards in the order of the documents, tokens are in that of first occurrence.
    """
    total, waiting = token_counts([], []), []
    for counts in shards:
        waiting.append(counts)
        if sum(map(len, waiting)) > max(COUNTS_AT_ONCE, 2 * len(total)):  # what is added up already is seldom gone through
            total, waiting = _added_up([total, *waiting]), []
    total = _added_up([total, *waiting])
    frequent = total.filter(pc.greater_equal(total["count"], min_freq))
    return Counter(dict(zip(frequent["token"].to_pylist(), frequent["count"].to_pylist(), strict=True)))


def _added_up(tables: Sequence[pa.Table]) -> pa.Table:
    """Arrow's `group_by` without threads comes to the same, in the same order, but takes four times as long."""
    joined = pa.concat_tables(tables)
    tokens = joined["token"].combine_chunks().dictionary_encode()  # numbers them by first occurrence
    counts = np.zeros(len(tokens.dictionary), dtype=np.int64)
    np.add.at(counts, tokens.indices.to_numpy(), joined["count"].to_numpy())
    return token_counts(tokens.dictionary, counts)


def build_vocab(counts: Counter[str], min_freq: int, max_vocab: int) -> list[str]:
    """fastai's `make_vocab` over the counts; tokens that occur less than `min_freq` times may be missing from them."""
    frequent = [token for token, count in counts.most_common(max_vocab) if count >= min_freq]
    vocab = [*SPECIAL_TOKENS, *(token for token in frequent if token not in SPECIAL_TOKENS)][:max_vocab]
    return vocab + [FILLER] * (8 - len(vocab) % 8)


def known_tokens(vocab: Sequence[str]) -> pa.Array:
    """A vocabulary for `id_map`: tokens by id, with nothing for the filler: a text that says xxfake says an unknown word."""
    return pa.array([None if token == FILLER else token for token in vocab], pa.large_string())


def id_map(tokens: pa.ChunkedArray, known: pa.Array) -> np.ndarray:
    """Id of each token (uint32) in `known_tokens`; `UNK_ID` for tokens that are not there."""
    return pc.index_in(tokens, value_set=known).fill_null(UNK_ID).to_numpy().astype(np.uint32)


def token_ids(vocab: Sequence[str]) -> dict[str, int]:
    """Id by token. The filler has none."""
    return {token: i for i, token in enumerate(vocab) if token != FILLER}


def load_vocab(path: Path) -> list[str]:
    """Read a list of strings, as `vocab.json`. Raises UserError for a file that is missing or holds something else."""
    try:
        vocab = json.loads(read_bounded(path, LONGEST_VOCAB))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as a list ({error})") from None
    if not isinstance(vocab, list) or not all(isinstance(token, str) for token in vocab):
        raise UserError(f"{path}: expected a list of strings")
    return vocab
