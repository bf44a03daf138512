"""Latent semantic analysis: features equal those of a dense SVD, and texts without labels teach what labelled ones lack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_classifiers import CONFIG, lettered_store
from stores import make_store

from ulmfit_dist.config.schema import Config, DataConfig
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.targets import NO_LABEL
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models import lsa
from ulmfit_dist.models.lsa import LsaFeatures
from ulmfit_dist.models.tfidf import count_columns, find_ngrams
from ulmfit_dist.stages.baseline import baseline_answers, compute_baseline, fit_linear_model

LABELLED, VALID, UNLABELLED = np.arange(40), np.arange(40, 60), np.arange(60, 80)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return lettered_store(tmp_path_factory.mktemp("lettered") / "store")


def dense_tfidf(store: TokenStore, texts: np.ndarray, documents: np.ndarray, ngrams: np.ndarray) -> np.ndarray:
    def counts(documents: np.ndarray) -> np.ndarray:
        dense: np.ndarray = count_columns(store, documents, ngrams).toarray().astype(np.float64)
        return dense

    idf = np.log((1 + len(texts)) / (1 + (counts(texts) > 0).sum(0)))
    values = np.where(counts(documents) > 0, 1 + np.log(np.maximum(counts(documents), 1)), 0) * idf
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norms > 0, norms, 1)


def test_features_are_those_of_a_dense_singular_value_decomposition(store: TokenStore):
    features = LsaFeatures(store, LABELLED, UNLABELLED, 5, seed=1)
    texts = np.concatenate([LABELLED, UNLABELLED])
    tfidf = dense_tfidf(store, texts, texts, features.ngrams)
    _, _, right = np.linalg.svd(tfidf, full_matrices=False)
    expected = dense_tfidf(store, texts, VALID, features.ngrams) @ right[:5].T
    expected /= np.sqrt(((tfidf @ right[:5].T) ** 2).sum(1).mean())
    actual = features.transform(VALID)
    signs = np.sign((actual * expected).sum(0))
    np.testing.assert_allclose(actual * signs, expected, atol=2e-2)  # randomized, and the gaps are small
    assert features.num_texts == 60
    mean_square = (features.transform(texts) ** 2).sum(1).mean()
    assert mean_square == pytest.approx(1)


def test_the_most_frequent_ngrams_are_kept_and_the_same_seed_gives_the_same_features(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lsa, "MOST_COLUMNS", 30)
    first, second = (LsaFeatures(store, LABELLED, UNLABELLED, 4, seed=1) for _ in range(2))
    assert len(first.ngrams) == 30
    everything = find_ngrams(store, np.concatenate([LABELLED, UNLABELLED]))
    counts = np.bincount(
        count_columns(store, np.concatenate([LABELLED, UNLABELLED]), everything).indices, minlength=len(everything)
    )
    left_out = counts[~np.isin(everything, first.ngrams)]
    assert counts[np.isin(everything, first.ngrams)].min() >= left_out.max()
    np.testing.assert_array_equal(first.train, second.train)


def few_labels(folder: Path) -> TokenStore:
    """Documents of twelve words, of which six are from a hundred of their topic: eight labelled, 400 without a label."""
    rng = np.random.default_rng(0)
    sizes = {"train": 8, "valid": 10, "unlabelled": 400, "test": 100}
    topics = np.arange(sum(sizes.values())) % 2
    documents = [
        5 + np.concatenate([rng.integers(0, 100, 6), 100 * (1 + topic) + rng.integers(0, 100, 6)]) for topic in topics
    ]
    ends = np.cumsum(list(sizes.values()))
    splits = {name: (int(end) - size, int(end)) for (name, size), end in zip(sizes.items(), ends, strict=True)}
    topics[slice(*splits["unlabelled"])] = NO_LABEL
    vocab = ["xxunk", "xxpad", "xxbos", "xxmaj", "xxrep", *map(str, range(300))]
    return make_store(folder, documents, topics, vocab, splits)


def few_config(features: str, target: str = "category") -> Config:
    classifier = replace(CONFIG.classifier, baseline_features=features, target=target)
    return replace(CONFIG, data=DataConfig(source="bbc_news"), classifier=classifier)


def test_texts_without_labels_teach_the_words_that_labelled_ones_lack(tmp_path: Path):
    store, runtime = few_labels(tmp_path / "store"), Runtime(CONFIG.runtime)
    figures = {features: compute_baseline(few_config(features), runtime, store) for features in ("tfidf", "lsa")}
    assert figures["tfidf"]["test"]["accuracy"] < 0.7
    assert figures["lsa"]["test"]["accuracy"] > 0.9
    assert (figures["lsa"]["features"], figures["lsa"]["num_documents"], figures["lsa"]["num_texts"]) == ("lsa", 8, 408)


def test_the_saved_model_gives_the_answers_of_the_baseline(tmp_path: Path):
    store, runtime, config = few_labels(tmp_path / "store"), Runtime(CONFIG.runtime), few_config("lsa")
    model, metadata = fit_linear_model(config, runtime, store)
    sides, expected_metadata, answers, _ = baseline_answers(config, runtime, store)
    assert model is not None
    assert {**metadata, "seconds": 0} == {**expected_metadata, "seconds": 0}
    for side, documents in sides.items():
        actual = model.answers([store.document(i) for i in documents])
        np.testing.assert_allclose(actual, answers[side], atol=1e-6)


def test_a_text_without_any_known_ngram_has_the_answer_of_no_feature(tmp_path: Path):
    store, runtime, config = few_labels(tmp_path / "store"), Runtime(CONFIG.runtime), few_config("lsa")
    model, _ = fit_linear_model(config, runtime, store)
    assert model is not None
    token = store.document(0)[:1]
    _, columns, _ = model._features([token])
    model.idf[columns] = 0  # as of an n-gram that all documents contain
    answers_NC = model.answers([token[:0], token])
    np.testing.assert_allclose(answers_NC[1], answers_NC[0])
    np.testing.assert_allclose(answers_NC.sum(1), 1)


def test_valid_and_test_texts_are_not_learned_from(tmp_path: Path):
    store, config = few_labels(tmp_path / "store"), few_config("lsa")
    splits = split_documents(store, config)
    assert not np.isin(splits.unlabelled, np.concatenate([splits.classifier_valid, splits.test])).any()
    figures = compute_baseline(config, Runtime(CONFIG.runtime), store)
    assert figures["num_texts"] == len(splits.classifier_train) + len(splits.unlabelled)
