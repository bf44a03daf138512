"""Several classifiers as one: the mean of their probabilities, and what keeps them from being compared."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from conftest import LEARNING, TINY, TOPICS, succeed
from made_classifiers import CONFIG, SEQ_LEN, lettered_store, make_classifier

from ulmfit_dist import load_classifier, load_ensemble
from ulmfit_dist.cli import main
from ulmfit_dist.config import RuntimeConfig
from ulmfit_dist.data.classifier_batches import pad_chunks
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.store import TokenStore, write_json
from ulmfit_dist.errors import UserError
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.stages import ensemble as ensemble_module
from ulmfit_dist.stages import evaluate as evaluate_module
from ulmfit_dist.stages.ensemble import evaluate_ensemble
from ulmfit_dist.stages.evaluate import evaluate

BACKWARDS = replace(CONFIG, model=replace(CONFIG.model, backwards=True))


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Runtime(RuntimeConfig(precision="no"))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenStore:
    store = lettered_store(tmp_path / "store")
    for module in (ensemble_module, evaluate_module):
        monkeypatch.setattr(module, "prepare", lambda config, runtime: store)
    return store


@pytest.fixture
def runs(tmp_path: Path, store: TokenStore) -> list[Path]:
    """Three classifiers of the same texts, one of which reads them from their end."""
    configs = [CONFIG, BACKWARDS, replace(CONFIG, classifier=replace(CONFIG.classifier, global_batch_size=5))]
    return [make_classifier(tmp_path / f"run{seed}", store, seed, config) for seed, config in enumerate(configs)]


def test_an_ensemble_gives_the_mean_of_its_members(runs: list[Path]):
    texts = ["a b c d e f g", "q", "z y x w v u t s r q p o n m"]
    members = [load_classifier(run).predict_proba(texts) for run in runs]
    assert np.ptp(members, axis=0).max() > 0.1
    ensemble = load_ensemble(runs)
    np.testing.assert_allclose(ensemble.predict_proba(texts), np.mean(members, axis=0), rtol=1e-12)
    assert ensemble.predict_one(texts[2]).label == ensemble.predict(texts)[2].label
    assert ensemble.predict([]) == []
    assert np.array_equal(ensemble.predict_proba(iter(texts)), ensemble.predict_proba(texts))  # read once, by all members


def test_its_members_are_measured_as_by_themselves(runs: list[Path], runtime: Runtime):
    found = evaluate_ensemble(runs, runtime)
    for member, run in zip(found["members"], runs, strict=True):
        alone = evaluate(run, runtime)["classifier"]
        assert member.pop("run") == str(run)
        assert len(member) == 5
        assert member == pytest.approx({name: alone[name] for name in member}, rel=1e-9)
    assert found["ensemble"].keys() == alone.keys()


def test_an_ensemble_is_measured_by_the_mean_of_probabilities(tmp_path: Path, store: TokenStore, runtime: Runtime):
    whole = replace(CONFIG, classifier=replace(CONFIG.classifier, max_len=60))  # documents are pooled whole
    configs = [whole, replace(whole, model=BACKWARDS.model)]
    runs = [make_classifier(tmp_path / f"run{seed}", store, seed, config) for seed, config in enumerate(configs)]
    documents = split_documents(store, CONFIG).classifier_valid
    mean_NC = np.mean([one_by_one(run, [store.document(i) for i in documents]) for run in runs], axis=0)
    found, label_N = evaluate_ensemble(runs, runtime)["ensemble"], store.labels[documents]
    assert found["accuracy"] == pytest.approx((mean_NC.argmax(1) == label_N).mean())
    assert found["valid_loss"] == pytest.approx(-np.log(mean_NC[np.arange(len(label_N)), label_N]).mean(), rel=1e-5)


@pytest.mark.parametrize("target", ["multicategory", "regression"])
def test_several_classes_and_numbers_are_measured_by_their_mean(
    target: str, tmp_path: Path, store: TokenStore, runtime: Runtime
):
    store.label_names = ["a;b", "b", "c;a"] if target == "multicategory" else ["1", "2.5", "4"]
    settings, data = replace(CONFIG.classifier, max_len=60, target=target), replace(CONFIG.data, no_label=None)
    whole = replace(CONFIG, classifier=settings, data=data)
    configs = [whole, replace(whole, model=BACKWARDS.model)]
    runs = [make_classifier(tmp_path / f"run{seed}", store, seed, config) for seed, config in enumerate(configs)]
    documents = split_documents(store, CONFIG).classifier_valid
    mean_NC = np.mean([one_by_one(run, [store.document(i) for i in documents]) for run in runs], axis=0)
    truth_N = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]] if target == "multicategory" else [[1], [2.5], [4]])
    truth_NC = truth_N[store.labels[documents]]
    found = evaluate_ensemble(runs, runtime)
    if target == "multicategory":
        assert found["ensemble"]["accuracy"] == pytest.approx(((mean_NC > 0.5) == truth_NC).mean())
        loss_NC = -np.log(np.where(truth_NC == 1, mean_NC, 1 - mean_NC))
        assert found["ensemble"]["valid_loss"] == pytest.approx(loss_NC.mean(), rel=1e-5)
    else:
        assert found["ensemble"]["rmse"] == pytest.approx(np.sqrt(((mean_NC - truth_NC) ** 2).mean()), rel=1e-5)
    for member, run in zip(found["members"], runs, strict=True):
        alone = evaluate(run, runtime)["classifier"]
        assert member["valid_loss"] == pytest.approx(alone["valid_loss"], rel=1e-9)


def one_by_one(run: Path, documents: list[np.ndarray]) -> np.ndarray:
    """What a classifier says of documents, each alone: [documents, classes]."""
    classifier = load_classifier(run)
    direction = -1 if classifier.config.model.backwards else 1
    widths = [-(-len(document) // SEQ_LEN) * SEQ_LEN for document in documents]
    alone = [pad_chunks([document[::direction]], width, SEQ_LEN) for document, width in zip(documents, widths, strict=True)]
    return np.concatenate([classifier._outputs(x_1T) for x_1T in alone])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(CONFIG, seed=7), r"run1/classifier was validated on other documents than .*run0/classifier.* same seed"),
        (replace(CONFIG, data=replace(CONFIG.data, valid_pct=0.2)), "same seed and data.valid_pct"),
    ],
)
def test_other_validation_documents_are_refused(tmp_path: Path, store: TokenStore, runtime: Runtime, config, said: str):
    runs = [make_classifier(tmp_path / f"run{i}", store, i, c) for i, c in enumerate((CONFIG, config))]
    with pytest.raises(UserError, match=said):
        evaluate_ensemble(runs, runtime)
    assert len(load_ensemble(runs).predict(["a b c"])) == 1  # new texts are new to both


def test_another_store_is_refused(runs: list[Path], runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    other = lettered_store(tmp_path / "other")
    other.meta["fingerprint"] = "y"
    write_json(runs[1] / "classifier" / "training.json", {"data_fingerprint": "y"})
    prepare = ensemble_module.prepare
    monkeypatch.setattr(
        ensemble_module, "prepare", lambda config, rt: other if config.model.backwards else prepare(config, rt)
    )
    with pytest.raises(UserError, match=r"run1/classifier was trained on another token store .*other.* than .*run0"):
        evaluate_ensemble(runs, runtime)


def test_labels_must_be_the_same(runs: list[Path], runtime: Runtime):
    write_json(runs[2] / "classifier" / "labels.json", ["a", "c", "b"])
    said = r"run2/classifier has other labels \(a, c, b\) than .*run0/classifier \(a, b, c\)"
    with pytest.raises(UserError, match=said):
        load_ensemble(runs)
    with pytest.raises(UserError, match=said):
        evaluate_ensemble(runs, runtime)


def test_one_classifier_is_no_ensemble(runs: list[Path], capsys: pytest.CaptureFixture[str]):
    assert main(["ensemble", str(runs[0]), "--text", "a b"]) == 2
    assert "an ensemble of 1: name two runs or more" in capsys.readouterr().err
    assert main(["ensemble", *map(str, runs), "--output", "labels.jsonl"]) == 2
    assert "--output is for labels: give texts, too" in capsys.readouterr().err


def test_the_command_labels_texts(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    texts, output = ["a b c d", "x y z"], tmp_path / "labels.jsonl"
    expected = load_ensemble(runs).predict(texts)
    assert main(["ensemble", *map(str, runs), "--text", texts[0], "--text", texts[1]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [prediction.label for prediction in expected]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    words = ["ensemble", *map(str, runs), "--file", str(tmp_path / "texts.txt"), "--output", str(output)]
    assert main(words) == 0
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["probabilities"] for line in written] == [prediction.probabilities for prediction in expected]


def test_forward_and_backward_are_measured_on_any_number_of_ranks(run_dirs: dict[str, Path], corpus: Path, recipe: Path):
    folder = run_dirs["caches"]
    words = ["run", recipe, f"data.path={corpus}", *TINY, *LEARNING, f"data.cache={folder}/cache1", f"runs_dir={folder}"]
    succeed([*words, "name=backwards", "model.backwards=true"])
    runs = [run_dirs["one"], folder / "backwards"]
    found = []
    for processes in (1, 2):
        text = succeed(["ensemble", *runs, "--precision", "no"], processes)
        found.append(json.loads(text[text.index("{") :]))
    for name in ("valid_loss", "accuracy", "f1_macro", "expected_calibration_error", "brier_score"):
        assert found[0]["ensemble"][name] == pytest.approx(found[1]["ensemble"][name], rel=1e-6), name
    assert found[0]["ensemble"]["confusion_matrix"] == found[1]["ensemble"]["confusion_matrix"]
    losses = [member["valid_loss"] for member in found[0]["members"]]
    assert losses[0] != losses[1]
    assert found[0]["ensemble"]["valid_loss"] < max(losses)
    assert succeed(["ensemble", *runs, "--text", " ".join(TOPICS["food"] * 3)]).startswith("food (0)")
