"""Logistic regression with naive Bayes weights: the reference in dense numpy, and saved models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from made_classifiers import CONFIG, lettered_store
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from ulmfit_dist.config.schema import Config
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.naive_bayes import NaiveBayesRegression, log_ratios
from ulmfit_dist.stages.baseline import baseline_answers, fit_linear_model
from ulmfit_dist.stages.baseline_figures import features_name

PARAMETERS = {"C": 4.0, "solver": "liblinear", "dual": True, "tol": 1e-6, "random_state": 0, "max_iter": 10_000}


def config_of(features: str) -> Config:
    return replace(CONFIG, classifier=replace(CONFIG.classifier, baseline_features=features))


def noisy_features(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Forty documents of 300 features, of which the first two show the class most of the time."""
    rng = np.random.default_rng(seed)
    y = np.arange(40) % 2
    X = rng.random((40, 300)) * (rng.random((40, 300)) < 0.1)
    for feature in range(2):
        X[:, feature] = (y == feature) * (rng.random(40) < 0.9)
    return X, y


def test_features_are_weighted_by_the_log_ratio_of_their_shares():
    X = np.array([[3, 1, 0], [1, 1, 0], [0, 1, 2.0]])
    actual = log_ratios(csr_matrix(X), np.array([True, True, False]))
    of_each = [[4.1 / 6.3, 2.1 / 6.3, 0.1 / 6.3], [0.1 / 3.3, 1.1 / 3.3, 2.1 / 3.3]]
    np.testing.assert_allclose(actual, np.abs(np.log(of_each[0]) - np.log(of_each[1])), atol=1e-12)


def test_the_coefficients_are_those_of_weighted_features():
    X, y = noisy_features()
    weights = log_ratios(csr_matrix(X), y == 1)
    expected = LogisticRegression(**PARAMETERS).fit(X * weights, y)
    actual = NaiveBayesRegression(**PARAMETERS).fit(csr_matrix(X), y)
    np.testing.assert_allclose(actual.coef_, expected.coef_ * weights, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(actual.predict_proba(csr_matrix(X)), expected.predict_proba(X * weights), atol=1e-5)


def test_each_of_several_classes_has_weights_of_its_own():
    X, y = noisy_features()
    y = y + 2 * (X[:, 2] > 0)
    fitted = OneVsRestClassifier(NaiveBayesRegression(**PARAMETERS)).fit(csr_matrix(X), y)
    for name, estimator in zip(fitted.classes_, fitted.estimators_, strict=True):
        alone = NaiveBayesRegression(**PARAMETERS).fit(csr_matrix(X), (y == name).astype(int))
        np.testing.assert_allclose(estimator.coef_, alone.coef_, rtol=1e-3, atol=1e-5)


def test_features_that_say_nothing_of_the_class_hurt_less():
    X, y = noisy_features()
    others, others_y = noisy_features(1)
    scores = [
        kind(**PARAMETERS).fit(csr_matrix(X), y).decision_function(csr_matrix(others)) * (2 * others_y - 1)
        for kind in (LogisticRegression, NaiveBayesRegression)
    ]
    relative = [float(score.mean() / score.std()) for score in scores]
    assert relative[1] > 1.1 * relative[0]


def test_the_saved_model_gives_the_answers_of_the_baseline(tmp_path: Path):
    store, runtime, config = lettered_store(tmp_path / "store"), Runtime(CONFIG.runtime), config_of("naive_bayes")
    model, metadata = fit_linear_model(config, runtime, store)
    sides, _, answers, _ = baseline_answers(config, runtime, store)
    assert model is not None
    assert (metadata["features"], features_name(metadata)) == ("naive_bayes", "NB-TF-IDF")
    for side, documents in sides.items():
        actual = model.answers([store.document(i) for i in documents])
        np.testing.assert_allclose(actual, answers[side], atol=1e-6)
    _, _, unweighted, _ = baseline_answers(config_of("tfidf"), runtime, store)
    assert np.abs(answers["valid"] - unweighted["valid"]).max() > 1e-3
