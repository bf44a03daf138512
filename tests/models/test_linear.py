"""The linear model on disk answers as the fitted one, and a damaged one is one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_classifiers import CONFIG, lettered_store

from ulmfit_dist import models
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.targets import read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.linear import LinearModel, load_linear
from ulmfit_dist.models.tfidf import TfidfFeatures
from ulmfit_dist.stages import linear_fit
from ulmfit_dist.stages.linear_fit import fit


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return lettered_store(tmp_path / "store")


def fitted(store: TokenStore, target: str) -> tuple[np.ndarray, list[np.ndarray], LinearModel]:
    """Answers of scikit-learn's model to validation documents, their token ids, and the model as arrays."""
    settings = replace(CONFIG.classifier, target=target)
    config = replace(CONFIG, classifier=settings)
    splits, targets = split_documents(store, config), read_targets(store, settings, ";")
    (_, answers, _), make = fit(config, store, targets, splits.classifier_train, {"valid": splits.classifier_valid})
    return answers["valid"], [store.document(i) for i in splits.classifier_valid.tolist()], make()


CASES = {
    "category": (["a", "b", "c"], "category", 1e-12),
    "two classes": (["a", "b", "b"], "category", 1e-12),
    "two of three classes": (["a", "c", "c"], "category", 1e-12),
    "multicategory": (["a;z", "b;z", "a;b;z"], "multicategory", 1e-12),
    "regression": (["1", "2.5", "4"], "regression", 1e-5),  # scikit-learn's ridge regression computes in float32
}


@pytest.mark.parametrize("is_hashed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_saved_linear_model_answers_as_the_fitted_one(
    case: str, is_hashed: bool, store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    names, target, tolerance = CASES[case]
    distinct = ["a", "b", "c"] if case == "two of three classes" else sorted(set(names))
    store.labels = np.array([distinct.index(names[label]) for label in store.labels], dtype=np.int32)
    store.label_names = distinct
    if is_hashed:
        monkeypatch.setattr(linear_fit, "TfidfFeatures", lambda *args: TfidfFeatures(*args, max_tokens=10))
    expected, documents, model = fitted(store, target)
    model.save(tmp_path / "linear")
    saved = load_linear(tmp_path / "linear")
    assert (saved.ngrams is None) is is_hashed
    monkeypatch.setattr(models.linear, "TOKENS_AT_ONCE", 100)
    actual = saved.answers(documents)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
    assert np.ptp(actual, axis=0).max() > 0.01
    np.testing.assert_array_equal(actual, model.answers(documents))
    assert saved.answers([]).shape == (0, actual.shape[1])
    unknown = saved.answers([np.zeros(0, dtype=np.int64)])  # no n-gram is known: the intercepts answer
    assert np.isfinite(unknown).all()


def test_a_damaged_linear_model_is_one_line(store: TokenStore, tmp_path: Path):
    _, _, model = fitted(store, "category")
    for number, damage in enumerate(
        [
            lambda folder: (folder / "linear.safetensors").unlink(),
            lambda folder: (folder / "linear.safetensors").write_bytes(b"no tensors"),
            lambda folder: (folder / "linear.json").write_text('{"target": "category"}'),
            lambda folder: replace(model, idf=model.idf[:-1]).save(folder),
            lambda folder: replace(model, classes=model.classes + 9).save(folder),
        ]
    ):
        folder = tmp_path / str(number)
        model.save(folder)
        damage(folder)
        with pytest.raises(UserError, match="the linear model is missing or damaged"):
            load_linear(folder)
