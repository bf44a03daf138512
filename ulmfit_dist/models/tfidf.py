"""TF-IDF features of documents, from the token ids of a store: 1- and 2-grams, sublinear counts, rows of unit length.

The columns are the n-grams of at least `MIN_DOCUMENTS` training documents. Past `MAX_TOKENS` training tokens n-grams are
hashed to `HASHED_FEATURES` columns instead, which needs no table of n-grams. Trade-off: a collision adds the counts of two.

N: documents, F: columns, P: pairs of a document and an n-gram in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_matrix, vstack  # type: ignore[import-untyped]
from sklearn.feature_extraction.text import TfidfTransformer  # type: ignore[import-untyped]

from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.models.ngrams import HASHED_FEATURES, Pairs, columns_of, count_pairs

MIN_DOCUMENTS = 2
MAX_TOKENS = 20_000_000
"""Maximum number of training tokens without hashing."""
TOKENS_PER_BLOCK = 1_000_000
"""Tokens per block of documents, which limits the memory of counting to about 100 MB."""


class TfidfFeatures:
    """TF-IDF features, fitted to training documents.

    Args:
        store: token store of the documents.
        train_N: indices of the training documents, int64 [N].
        max_tokens: maximum number of training tokens without hashing.

    Attributes:
        is_hashed: n-grams are hashed.
        ngrams: n-grams by column, ascending int64 [F]; empty if they are hashed.
        train: features of the training documents, float32 [N, F].
    """

    def __init__(self, store: TokenStore, train_N: np.ndarray, max_tokens: int = MAX_TOKENS):
        self.store = store
        self.is_hashed = bool(store.lengths[train_N].sum() > max_tokens)
        self.ngrams = np.empty(0, np.int64) if self.is_hashed else find_ngrams(store, train_N)
        self._transformer = TfidfTransformer(sublinear_tf=True)
        self.train = self._transformer.fit_transform(self._count(train_N))

    @property
    def idf(self) -> np.ndarray:
        """Inverse document frequencies, float32 [F]."""
        idf: np.ndarray = self._transformer.idf_
        return idf

    def transform(self, documents_N: np.ndarray) -> csr_matrix:
        """Return the features of documents, float32 [N, F], by their indices in the store."""
        return self._transformer.transform(self._count(documents_N))

    def weights(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the weights of the n-grams, float64 [F]: the coefficients."""
        return coefficients

    def _count(self, documents_N: np.ndarray) -> csr_matrix:
        return count_columns(self.store, documents_N, None if self.is_hashed else self.ngrams)


def count_columns(store: TokenStore, documents_N: np.ndarray, ngrams: np.ndarray | None) -> csr_matrix:
    """Return how often each document contains each n-gram, float32 [N, F].

    Args:
        ngrams: n-grams by column, ascending int64 [F]; None: n-grams are hashed.
    """
    width = HASHED_FEATURES if ngrams is None else len(ngrams)
    blocks = [csr_matrix((0, width), dtype=np.float32)]
    for pairs in count_ngrams(store, documents_N):
        columns, is_known = columns_of(pairs.ngrams, ngrams)
        indices = pairs.documents[is_known], columns[is_known]
        shape = pairs.num_documents, width
        blocks.append(csr_matrix((pairs.counts[is_known].astype(np.float32), indices), shape=shape))
    return vstack(blocks, format="csr")


def find_ngrams(store: TokenStore, documents_N: np.ndarray, most: int | None = None) -> np.ndarray:
    """Return the n-grams of at least `MIN_DOCUMENTS` documents, ascending int64.

    Args:
        most: maximum number of n-grams: those of the most documents, of equal ones the first.
    """
    blocks = [np.unique(pairs.ngrams, return_counts=True) for pairs in count_ngrams(store, documents_N)]
    if not blocks:
        return np.empty(0, np.int64)
    ngrams, indices = np.unique(np.concatenate([block for block, _ in blocks]), return_inverse=True)
    counts = np.bincount(indices, weights=np.concatenate([counts for _, counts in blocks]))
    ngrams, counts = ngrams[counts >= MIN_DOCUMENTS], counts[counts >= MIN_DOCUMENTS]
    return ngrams if most is None else np.sort(ngrams[np.argsort(-counts, kind="stable")[:most]])


def count_ngrams(store: TokenStore, documents_N: np.ndarray) -> Iterator[Pairs]:
    """Yield the n-grams of documents, in blocks of about `TOKENS_PER_BLOCK` tokens (`count_pairs`)."""
    size = len(store.vocab)
    ends = np.cumsum(store.lengths[documents_N])
    block_N = ends // TOKENS_PER_BLOCK
    for block in np.unique(block_N):
        block_documents = documents_N[block_N == block]
        yield count_pairs([store.document(i) for i in block_documents], size)
