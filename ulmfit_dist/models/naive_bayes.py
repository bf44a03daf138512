"""Logistic regression of features that naive Bayes weighs: NB-SVM (Wang and Manning, 2012), with a logistic loss.

Each feature is multiplied by the absolute log ratio of its shares in both classes, as naive Bayes has it. A feature that has
equal shares in both gets a weight near 0. The coefficients are multiplied after fitting, so the fitted model reads plain
features. Trade-off: the features are copied once for each class.

N: documents, F: features.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]

SMOOTHING = 0.1
"""Sum of values added to each feature of each class: on IMDb better than 1, with 400 to 18,000 labels."""


class NaiveBayesRegression(LogisticRegression):
    """Logistic regression of two classes. Parameters and attributes are those of `LogisticRegression`."""

    def fit(self, X: csr_matrix, y: np.ndarray, sample_weight: np.ndarray | None = None) -> NaiveBayesRegression:
        """Fit to non-negative features [N, F] and classes [N], two of them."""
        weights_F = log_ratios(X, np.asarray(y) == np.max(y))
        super().fit(X.multiply(weights_F).tocsr().astype(X.dtype), y, sample_weight)
        self.coef_: np.ndarray = self.coef_ * weights_F
        return self


def log_ratios(X: csr_matrix, is_positive: np.ndarray) -> np.ndarray:
    """Return the absolute log ratio of each feature's shares in both classes, float64 [F].

    Args:
        X: non-negative features [N, F].
        is_positive: bool [N].
    """
    shares = []
    for documents in (is_positive, ~is_positive):
        sums_F = np.asarray(X[documents].sum(0), np.float64).ravel() + SMOOTHING
        shares.append(np.log(sums_F / sums_F.sum()))
    ratios_F: np.ndarray = np.abs(shares[0] - shares[1])
    return ratios_F
