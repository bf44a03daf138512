"""Counts of the 1- and 2-grams of token ids, and the columns that stand for them: the features of the linear baseline.

It needs only numpy, so a saved linear model labels texts without scikit-learn. Trade-off: features are computed in one place
for training (`tfidf.py`, sparse matrices) and in another for labelling (`linear.py`), from the same counts.

P: pairs of a document and an n-gram in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

HASHED_FEATURES = 2**20
"""Columns of hashed n-grams."""
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio, for multiplicative hashing (Knuth, The Art of Computer Programming, vol. 3, 6.4)."""


class Pairs(NamedTuple):
    """The n-grams of a block of documents: document in the block, n-gram and count of each pair, int64 [P]."""

    num_documents: int
    documents: np.ndarray
    ngrams: np.ndarray
    counts: np.ndarray


def count_pairs(documents: Sequence[np.ndarray], vocab_size: int) -> Pairs:
    """Return the n-grams of documents, given their token ids, in the order of the documents, then of the n-grams.

    An n-gram is encoded as the id of its token, or as V + first * V + second of two, with a vocabulary of V tokens.
    """
    ids = np.concatenate([np.empty(0, np.int64), *documents]).astype(np.int64)
    rows = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
    is_pair = rows[1:] == rows[:-1]
    bigrams = (vocab_size + ids[:-1] * vocab_size + ids[1:])[is_pair]
    num_ngrams = vocab_size + vocab_size * vocab_size
    keys = np.concatenate([ids, bigrams]) + np.concatenate([rows, rows[1:][is_pair]]) * num_ngrams
    keys, counts = np.unique(keys, return_counts=True)
    row_P, ngrams = np.divmod(keys, num_ngrams)
    return Pairs(len(documents), row_P, ngrams, counts)


def columns_of(ngrams_P: np.ndarray, known: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the column of each n-gram, int64 [P], and whether it has one, bool [P].

    Args:
        known: n-grams by column, ascending; None: n-grams are hashed.
    """
    if known is None:
        shift = np.uint64(64 - HASHED_FEATURES.bit_length() + 1)
        return ((ngrams_P.astype(np.uint64) * MULTIPLIER) >> shift).astype(np.int64), np.full(len(ngrams_P), True)
    columns = np.minimum(np.searchsorted(known, ngrams_P), max(0, len(known) - 1))
    return columns, known[columns] == ngrams_P if len(known) else np.full(len(columns), False)
