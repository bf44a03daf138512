"""TF-IDF baseline: features and figures equal scikit-learn's on the same documents, on any number of ranks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, command_here, launch, succeed_here
from corpora import WRITERS, Rows
from made_classifiers import lettered_store
from sklearn.feature_extraction.text import TfidfVectorizer

from ulmfit_dist import models
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.models.tfidf import HASHED_FEATURES, TfidfFeatures
from ulmfit_dist.tracking.wandb_files import records

TOPICS = {"warm": "soup lamp bread oven", "cold": "ice snow frost wind", "wet": "rain lake river mist"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return lettered_store(tmp_path_factory.mktemp("lettered") / "store")


def expected_features(store: TokenStore, train: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    vectorizer = TfidfVectorizer(analyzer="word", tokenizer=str.split, token_pattern=None, lowercase=False)
    vectorizer.set_params(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    texts = [" ".join(store.vocab[i] for i in store.document(document)) for document in range(len(store))]
    first = vectorizer.fit_transform(texts[i] for i in train).toarray()
    return first, vectorizer.transform(texts[i] for i in others).toarray()


def sorted_columns(features: np.ndarray) -> np.ndarray:
    return features[:, np.lexsort(features)]


@pytest.mark.parametrize("tokens_per_block", [1_000_000, 50])
def test_features_are_scikit_learns(store: TokenStore, tokens_per_block: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models.tfidf, "TOKENS_PER_BLOCK", tokens_per_block)
    train, others = np.arange(0, 60), np.arange(60, 80)
    features = TfidfFeatures(store, train)
    expected = np.concatenate(expected_features(store, train, others))
    actual = np.concatenate([features.train.toarray(), features.transform(others).toarray()])
    assert actual.shape == expected.shape
    np.testing.assert_allclose(sorted_columns(actual), sorted_columns(expected), atol=1e-6)


def test_many_tokens_are_hashed_to_columns_of_the_same_counts(store: TokenStore):
    train = np.arange(60)
    plain, hashed = TfidfFeatures(store, train), TfidfFeatures(store, train, max_tokens=10)
    assert (plain.is_hashed, hashed.is_hashed) == (False, True)
    assert hashed.train.shape == (60, HASHED_FEATURES)
    similarity = (hashed.train @ hashed.train.T).toarray()
    np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-5)
    used = np.unique(hashed.train.indices)
    ngrams = {(a,) for i in train for a in store.document(i).tolist()}
    ngrams |= {pair for i in train for pair in zip(store.document(i).tolist(), store.document(i)[1:].tolist(), strict=False)}
    assert len(ngrams) - 2 <= len(used) <= len(ngrams)  # hardly a collision among so few


def texts(number: int, seed: int, label: str = "{topic}") -> Rows:
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for i in range(number):
        topic = [*TOPICS][i % 3]
        words = [*TOPICS[topic].split(), *"the of and a very".split()]
        rows.append((" ".join(rng.choice(words, 12)), label.format(topic=topic, number=i % 3)))
    return rows


def words(folder: Path, recipe: Path, *others: str, label: str = "{topic}", command: str = "baseline") -> list[object]:
    for seed, (split, number) in enumerate({"train": 60, "valid": 18, "test": 30}.items()):
        WRITERS["csv"][1](str(folder / "texts" / split), texts(number, seed, label))
    place = [f"data.path={folder / 'texts'}", f"data.cache_dir={folder / 'cache'}", f"runs_dir={folder}", "data.source=csv"]
    return [command, recipe, *TINY, *place, *others]


def test_figures_are_those_of_scikit_learn_and_of_two_ranks(recipe: Path, tmp_path: Path):
    given = words(tmp_path, recipe, "runtime.precision=fp64")
    figures = json.loads(succeed_here([*given, "--json"]))
    assert figures["test"]["accuracy"] > 0.9
    assert figures["majority"]["test"]["accuracy"] == pytest.approx(1 / 3)
    low, high = figures["test"]["accuracy_interval"]
    assert low <= figures["test"]["accuracy"] <= high
    assert figures["num_documents"] == 60
    two = launch(["-m", "ulmfit_dist", *given, "--json"], 2)
    assert two.returncode == 0, two.stderr
    other = json.loads(two.stdout)
    assert other["C"] == figures["C"]
    for side in ("valid", "test"):
        for name, value in figures[side].items():
            np.testing.assert_allclose(other[side][name], value, rtol=1e-12)
    shutil.rmtree(tmp_path / "texts")
    (meta,) = (tmp_path / "cache").glob("*/meta.json")
    again = json.loads(succeed_here([*given, f"data.token_store={meta.parent}", "--json"]))  # no text is needed
    assert {**again, "seconds": 0} == {**figures, "seconds": 0}


@pytest.mark.parametrize(
    ("keys", "label", "metric", "good"),
    [
        (["classifier.target=multicategory", "data.label_delim=;"], "{topic};all", "f1_micro", lambda value: value > 0.9),
        (["classifier.target=regression", "data.missing_label=null"], "{number}", "rmse", lambda value: value < 0.5),
    ],
)
def test_several_classes_and_numbers_have_a_baseline(
    keys: list[str], label: str, metric: str, good: Callable[[float], bool], recipe: Path, tmp_path: Path
):
    given = words(tmp_path, recipe, *keys, label=label)
    figures = json.loads(succeed_here([*given, "--json"]))
    assert good(figures["test"][metric])
    assert not good(figures["majority"]["test"][metric])
    assert len(figures["test"][f"{metric}_interval"]) == 2
    printed = succeed_here(given).splitlines()
    assert metric in next(line for line in printed if line.startswith("baseline"))
    assert len([line for line in printed if line.startswith("TF-IDF, linear")]) == 2


def test_one_class_or_none_has_a_baseline_and_one_class_of_all_is_refused(recipe: Path, tmp_path: Path):
    given = words(tmp_path, recipe, "classifier.target=multicategory", "data.label_delim=;", label="all")
    assert "a single class, 'all'" in command_here(given).stderr
    for split in ("train", "valid", "test"):
        rows = [(text, "all" if number == "0" else ";") for text, number in texts(60, 0, "{number}")]
        WRITERS["csv"][1](str(tmp_path / "texts" / split), rows)
    figures = json.loads(succeed_here([*given, "--json"]))
    assert figures["valid"]["f1_micro"] > 0.9 > figures["majority"]["valid"]["f1_micro"]


def test_folds_leave_the_test_split_alone_and_wrong_labels_are_one_line(recipe: Path, tmp_path: Path):
    given = words(tmp_path, recipe)
    (tmp_path / "texts" / "valid.csv").unlink()
    figures = json.loads(succeed_here([*given, "data.folds=3", "data.fold=1", "--json"]))
    assert figures["num_documents"] == 40
    assert "test" not in figures
    result = command_here([*given, "data.label_col=null"])
    assert result.returncode == 2
    assert "no labelled document to train the classifier on" in result.stderr


@pytest.mark.distributed
def test_a_run_measures_the_baseline_once_before_it_trains(recipe: Path, tmp_path: Path):
    short = ("lm.phases=[{epochs: 1, lr: 1e-2}]", "classifier.phases=[{epochs: 1, lr: 1e-2}]", "name=run")
    given = words(tmp_path, recipe, *short, "classifier.baseline=true", command="run")
    lines = succeed_here(given).splitlines()
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    expected = json.loads(succeed_here(["baseline", *given[1:], "--json"]))
    actual = {name: summary["baseline"][name] for name in expected}
    assert {**actual, "seconds": 0} == {**expected, "seconds": 0}
    first_line = next(i for i, line in enumerate(lines) if line.startswith("baseline: TF-IDF"))
    (header,) = [i for i, line in enumerate(lines) if line.startswith("stage") and "f1_macro" in line and "phase" in line]
    assert first_line < next(i for i, line in enumerate(lines) if "perplexity" in line)
    row, epoch = lines[header + 1 : header + 3]
    assert row.startswith("baseline")
    assert f"{expected['valid']['accuracy']:.4f}" in row
    assert epoch.startswith("classifier")
    assert f"against {expected['test']['accuracy']:.4f} on test" in lines[-1]
    html = (run / "report.html").read_text()
    headlines = html.split('class="headlines"')[1]
    assert headlines.index("Linear baseline") < headlines.index("Language model")
    (path,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    summaries = [record.summary for record in records(path) if record.HasField("summary")]
    recorded = {item.key: json.loads(item.value_json) for part in summaries for item in part.update}
    assert recorded["baseline/valid/accuracy"] == expected["valid"]["accuracy"]
    assert recorded["baseline/test/accuracy_low"] == expected["test"]["accuracy_interval"][0]
    again = succeed_here([*given, "tracking.tags=[again]"])  # the baseline is not measured again
    assert json.loads((run / "summary.json").read_text())["baseline"] == summary["baseline"]
    assert f"against {expected['test']['accuracy']:.4f} on test" in again.splitlines()[-1]
    succeed_here([*given, "classifier.baseline_features=lsa"])  # which the classifier does not depend on
    assert json.loads((run / "summary.json").read_text())["baseline"]["features"] == "lsa"
    without = succeed_here([*given, "classifier.baseline=false"])
    assert "baseline" not in json.loads((run / "summary.json").read_text())
    assert "baseline" not in without
