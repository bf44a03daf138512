"""Latent semantic analysis: TF-IDF features reduced to the directions in which all texts, labelled or not, differ most.

N-grams that occur in the same documents get similar features (Deerwester et al., 1990), so a linear model learns from few
labelled documents about words that none of them contains. The directions are the leading right singular vectors of the
TF-IDF matrix (randomized SVD, Halko et al., 2011, as in scikit-learn). A linear model of these features is one of TF-IDF
features, too (`weights`), so it is saved as such. Trade-off: rare n-grams, and what few texts speak of, are lost.

N: documents, F: columns (n-grams), K: components.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix, diags  # type: ignore[import-untyped]
from sklearn.utils.extmath import randomized_svd  # type: ignore[import-untyped]

from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.models.tfidf import count_columns, find_ngrams

MOST_COLUMNS = 100_000
"""Maximum number of n-grams, those of the most documents, which limits time and memory."""
ITERATIONS = 4
"""Power iterations of the randomized SVD."""


class LsaFeatures:
    """Features of latent semantic analysis, fitted to texts without labels.

    Args:
        store: token store of the documents.
        train_N: indices of the labelled training documents, int64 [N].
        others_N: indices of documents without a label to learn from as well, int64.
        num_components: maximum number of components.
        seed: seed of the randomized SVD.

    Attributes:
        is_hashed: False.
        ngrams: n-grams by column, ascending int64 [F].
        idf: inverse document frequencies, float32 [F]; 0 for an n-gram that all documents contain.
        components: right singular vectors, float64 [F, K], scaled so that the features of a document have a mean squared
            norm of 1.
        num_texts: number of documents learned from.
        train: features of the training documents, float64 [N, K].
    """

    is_hashed = False

    def __init__(self, store: TokenStore, train_N: np.ndarray, others_N: np.ndarray, num_components: int, seed: int):
        self.store = store
        texts_N = np.sort(np.concatenate([train_N, others_N]))
        self.ngrams = find_ngrams(store, texts_N, MOST_COLUMNS)
        counts = count_columns(store, texts_N, self.ngrams)
        documents_F = np.bincount(counts.indices, minlength=len(self.ngrams))
        self.idf = np.log((1 + len(texts_N)) / (1 + documents_F)).astype(np.float32)
        tfidf = self._weighted(counts)
        rank = max(1, min(num_components, *tfidf.shape))
        left, values, right = randomized_svd(tfidf, rank, n_iter=ITERATIONS, random_state=seed)
        self.num_texts = len(texts_N)
        norm = np.sqrt(((left * values) ** 2).sum() / len(texts_N))
        self.components = right.T / (norm or 1.0)
        self.train = self.transform(train_N)

    def transform(self, documents_N: np.ndarray) -> np.ndarray:
        """Return the features of documents, float64 [N, K], by their indices in the store."""
        features: np.ndarray = self._weighted(count_columns(self.store, documents_N, self.ngrams)) @ self.components
        return features

    def weights(self, coefficients: np.ndarray) -> np.ndarray:
        """Return the weights of the n-grams, float64 [F], that equal coefficients of the components, float64 [K]."""
        weights_F: np.ndarray = self.components @ coefficients
        return weights_F

    def _weighted(self, counts: csr_matrix) -> csr_matrix:
        """Return TF-IDF features of counts, sublinear, rows of unit length, float64 [N, F], rounded as in `LinearModel`."""
        weighted = counts.copy()
        weighted.data = (np.log(weighted.data) + np.float32(1)) * self.idf[weighted.indices]
        norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
        return diags(1 / np.where(norms > 0, norms, 1)) @ weighted.astype(np.float64)
