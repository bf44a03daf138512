"""Linear model of the baseline: features of the documents, the model, and its answers.

It is scikit-learn's logistic regression (one-vs-rest for more than two classes), or ridge regression for numeric targets;
its C is selected on the validation documents. Its features are 1-grams and 2-grams of token ids, so it needs no text. Of
`classifier.baseline_features`, `naive_bayes` weighs them by class; `lsa` reduces them by latent semantic analysis of all
training texts, labelled or not, and C is fixed. Trade-off: all texts are counted on one rank, in memory.

N: documents, C: classes, or 1 for a regression.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
from sklearn.linear_model import LogisticRegression, Ridge  # type: ignore[import-untyped]
from sklearn.multiclass import OneVsRestClassifier  # type: ignore[import-untyped]

from ulmfit_dist.config.schema import ClassifierConfig, Config
from ulmfit_dist.data.splits import DocumentSplits, measured_texts, split_documents
from ulmfit_dist.data.targets import Targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.models.linear import LinearModel, LinearSettings, vocab_digest
from ulmfit_dist.models.lsa import LsaFeatures
from ulmfit_dist.models.naive_bayes import NaiveBayesRegression
from ulmfit_dist.models.tfidf import TfidfFeatures
from ulmfit_dist.rng.counter_based import derive_seed

STRENGTHS = (1.0, 4.0, 16.0, 64.0)
"""Candidate values of C, the inverse regularization strength."""
LSA_STRENGTH = 10.0
"""C for features of latent semantic analysis: on IMDb, 100 to 20,000 labels, within 0.001 of the best of 0.3 to 100."""
DOCUMENTS_PER_COMPONENT = 10
"""Labelled training documents per component of latent semantic analysis."""
FEWEST_COMPONENTS, MOST_COMPONENTS = 25, 200
MAX_WORK = 10_000_000_000
"""Stored features times classes above which only one C, `STRENGTHS[-2]`, is tried."""
MAX_TRAIN_TOKENS = 60_000_000
"""Maximum number of training tokens; of more, a seeded sample of the documents is used."""
MAX_LSA_TOKENS = 40_000_000
"""Maximum number of tokens, labelled or not, for latent semantic analysis, as above."""
Figures = dict[str, Any]
Fitted = tuple[Figures, dict[str, np.ndarray], dict[str, np.ndarray]]
"""Metadata, and by split the answers of the linear model and of the most frequent class."""


def fit(
    config: Config, store: TokenStore, targets: Targets, train_N: np.ndarray, sides: Mapping[str, np.ndarray]
) -> tuple[Fitted, Callable[[], LinearModel]]:
    """Return the figures and answers of `Fitted`, float64 [N, C] by split, and a function that returns the model.

    Args:
        train_N: training documents, int64 [N], ascending.
        sides: documents to answer by split, int64 [N]; C is selected on `valid`.
    """
    started = time.perf_counter()
    train_N = _sample(store, train_N, config.seed, MAX_TRAIN_TOKENS)
    y = targets.of(store.labels[train_N]).numpy()
    features: TfidfFeatures | LsaFeatures
    if config.classifier.baseline_features == "lsa":
        features = _lsa_features(config, store, train_N)
        inputs = {side: features.transform(documents_N) for side, documents_N in sides.items()}
        strength, model = LSA_STRENGTH, _fit_dense(features.train, y, LSA_STRENGTH, config.classifier)
        size = {"num_components": features.train.shape[1], "num_texts": features.num_texts}
    else:
        features = TfidfFeatures(store, train_N)
        inputs = {side: features.transform(documents_N) for side, documents_N in sides.items()}
        y_valid = targets.of(store.labels[sides["valid"]]).numpy()
        strength, model = _select(features.train, y, inputs["valid"], y_valid, targets, config.classifier)
        size = {}
    answers = {side: _answers(model, part, targets) for side, part in inputs.items()}
    constant = {side: np.tile(_constant(y, targets), (len(documents_N), 1)) for side, documents_N in sides.items()}
    metadata = {"features": config.classifier.baseline_features, "C": strength, "num_features": len(features.idf)}
    metadata |= {**size, "num_documents": len(train_N), "seconds": round(time.perf_counter() - started, 1)}
    return (metadata, answers, constant), partial(_linear_model, model, features, store, targets, strength)


def _lsa_features(config: Config, store: TokenStore, train_N: np.ndarray) -> LsaFeatures:
    """Return features of the training texts, labelled or not, with more components for more labels."""
    others_N = unlabelled_texts(split_documents(store, config), store)
    room = MAX_LSA_TOKENS - int(store.lengths[train_N].sum())
    others_N = _sample(store, others_N, config.seed, room) if room > 0 else others_N[:0]
    wanted = min(max(len(train_N) // DOCUMENTS_PER_COMPONENT, FEWEST_COMPONENTS), MOST_COMPONENTS)
    return LsaFeatures(store, train_N, others_N, wanted, derive_seed(config.seed, "lsa", 0) % 2**32)


def unlabelled_texts(splits: DocumentSplits, store: TokenStore) -> np.ndarray:
    """Return the documents without a label to learn from, int64: none has the text of a valid or test document."""
    unlabelled: np.ndarray = splits.unlabelled[~measured_texts(store, splits)]
    return unlabelled


def _select(
    train: csr_matrix, y: np.ndarray, valid: csr_matrix, y_valid: np.ndarray, targets: Targets, settings: ClassifierConfig
) -> tuple[float, Any]:
    """Return the C that is best on valid, and its model."""
    best: tuple[float, float, Any] | None = None
    is_large = train.nnz * targets.num_outputs * len(STRENGTHS) > MAX_WORK
    for strength in STRENGTHS[-2:-1] if is_large else STRENGTHS:
        model = _fit_linear(train, y, strength, settings)
        quality = _quality(_answers(model, valid, targets), y_valid, settings)
        if best is None or quality > best[0]:
            best = quality, strength, model
    assert best is not None
    return best[1:]


def _linear_model(
    fitted: Any, features: TfidfFeatures | LsaFeatures, store: TokenStore, targets: Targets, strength: float
) -> LinearModel:
    """Return a fitted scikit-learn model as arrays."""
    parts = fitted.estimators_ if isinstance(fitted, OneVsRestClassifier) else [fitted]
    width = len(features.idf)
    coefficients, intercepts, constants = np.zeros((len(parts), width)), np.zeros(len(parts)), np.full(len(parts), np.nan)
    for k, part in enumerate(parts):
        if hasattr(part, "coef_"):
            coefficients[k], intercepts[k] = features.weights(np.ravel(part.coef_)), np.ravel(part.intercept_)[0]
        else:  # scikit-learn's constant, for a class that all training documents have, or none
            constants[k] = part.predict_proba(features.train[:1])[0, 1]
    classes = fitted.classes_ if targets.kind == "category" else np.arange(targets.num_outputs)
    settings = LinearSettings(targets.kind, targets.num_outputs, len(store.vocab), vocab_digest(store.vocab), strength)
    ngrams = None if features.is_hashed else features.ngrams
    return LinearModel(settings, features.idf, coefficients, intercepts, constants, np.asarray(classes, np.int64), ngrams)


def _sample(store: TokenStore, documents_N: np.ndarray, seed: int, max_tokens: int) -> np.ndarray:
    """Return the documents, or a seeded sample of them with at most `max_tokens` tokens."""
    if store.lengths[documents_N].sum() <= max_tokens:
        return documents_N
    generator = np.random.Generator(np.random.Philox(key=derive_seed(seed, "baseline", len(documents_N))))
    shuffled_N = generator.permutation(documents_N)
    return np.sort(shuffled_N[: int(np.searchsorted(np.cumsum(store.lengths[shuffled_N]), max_tokens))])


def _fit_dense(features: np.ndarray, y: np.ndarray, strength: float, settings: ClassifierConfig) -> Any:
    if settings.target == "regression":
        return Ridge(alpha=1 / strength).fit(features, y)
    model = LogisticRegression(C=strength, max_iter=1000, tol=1e-8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        return (OneVsRestClassifier(model) if y.ndim > 1 or y.max() > 1 else model).fit(features, y)


def _fit_linear(features: csr_matrix, y: np.ndarray, strength: float, settings: ClassifierConfig) -> Any:
    if settings.target == "regression":
        return Ridge(alpha=1 / strength, solver="sparse_cg").fit(features, y)
    kind = NaiveBayesRegression if settings.baseline_features == "naive_bayes" else LogisticRegression
    model = kind(C=strength, solver="liblinear", dual=True, tol=0.1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # C is selected by the metric on valid, converged or not
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        return (OneVsRestClassifier(model) if y.ndim > 1 or y.max() > 1 else model).fit(features, y)


def _answers(model: Any, features: csr_matrix | np.ndarray, targets: Targets) -> np.ndarray:
    """Return probabilities of the classes, or numbers, float64 [N, C]."""
    if targets.kind == "regression":
        answers_NC: np.ndarray = model.predict(features).astype(np.float64)[:, None]
        return answers_NC
    probabilities = model.predict_proba(features)
    if targets.kind == "multicategory":
        answers_NC = probabilities[:, -targets.num_outputs :].astype(np.float64)  # of a single class scikit-learn gives two
        return answers_NC
    answers_NC = np.zeros((features.shape[0], targets.num_outputs))
    answers_NC[:, model.classes_] = probabilities  # classes without a training document keep 0
    return answers_NC


def _constant(y: np.ndarray, targets: Targets) -> np.ndarray:
    """Return the shares of the classes among training labels, or the mean of the numbers, float64 [C]."""
    if targets.kind == "category":
        return np.bincount(y, minlength=targets.num_outputs) / len(y)
    return np.atleast_1d(y.mean(0)).astype(np.float64)


def _quality(answers_NC: np.ndarray, y: np.ndarray, settings: ClassifierConfig) -> float:
    """Return the score that C is selected by: accuracy (over all decisions), or the negated mean squared error."""
    if settings.target == "category":
        return float((answers_NC.argmax(1) == y).mean())
    if settings.target == "multicategory":
        return float(((answers_NC > settings.threshold) == (y > 0.5)).mean())
    return -float(((answers_NC[:, 0] - y) ** 2).mean())
