"""Ensembles of classifiers: the mean of their probabilities, and incompatible members."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import LEARNING, TINY, TOPICS, succeed
from made_classifiers import CONFIG, SEQ_LEN, lettered_store, make_classifier

from ulmfit_dist import load_classifier, load_ensemble
from ulmfit_dist.cli.main import main
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.data.classifier_loader import pad_chunks
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.answers import compute_answers
from ulmfit_dist.inference.temperature import BOUNDS, fit_temperature, scale_answers
from ulmfit_dist.models.bundle import read_bundle
from ulmfit_dist.stages import evaluate as evaluate_module
from ulmfit_dist.stages import evaluate_ensemble as ensemble_module
from ulmfit_dist.stages import evaluate_texts as evaluate_data_module
from ulmfit_dist.stages.baseline import baseline_answers, compute_baseline
from ulmfit_dist.stages.evaluate import evaluate
from ulmfit_dist.stages.evaluate_ensemble import describe_ensemble, evaluate_ensemble
from ulmfit_dist.utils.files import write_json

BACKWARDS = replace(CONFIG, model=replace(CONFIG.model, backwards=True))


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Runtime(RuntimeConfig(precision="fp32"))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenStore:
    store = lettered_store(tmp_path / "store")
    for module in (ensemble_module, evaluate_module):
        monkeypatch.setattr(module, "prepare", lambda config, runtime: store)
    return store


@pytest.fixture
def runs(tmp_path: Path, store: TokenStore) -> list[Path]:
    """Three classifiers of the same texts, one of them backward."""
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
    actual = evaluate_ensemble(runs, runtime)
    for member, run in zip(actual["members"], runs, strict=True):
        alone = evaluate(run, runtime)["classifier"]
        assert member.pop("run") == str(run)
        assert len(member) == 5
        assert member == pytest.approx({name: alone[name] for name in member}, rel=1e-9)
    assert actual["ensemble"].keys() == alone.keys()


def test_an_ensemble_is_measured_by_the_mean_of_probabilities(tmp_path: Path, store: TokenStore, runtime: Runtime):
    whole = replace(CONFIG, classifier=replace(CONFIG.classifier, max_len=60))  # documents are pooled whole
    configs = [whole, replace(whole, model=BACKWARDS.model)]
    runs = [make_classifier(tmp_path / f"run{seed}", store, seed, config) for seed, config in enumerate(configs)]
    documents = split_documents(store, CONFIG).classifier_valid
    mean_NC = np.mean([one_by_one(run, [store.document(i) for i in documents]) for run in runs], axis=0)
    actual, label_N = evaluate_ensemble(runs, runtime)["ensemble"], store.labels[documents]
    assert actual["accuracy"] == pytest.approx((mean_NC.argmax(1) == label_N).mean())
    assert actual["valid_loss"] == pytest.approx(-np.log(mean_NC[np.arange(len(label_N)), label_N]).mean(), rel=1e-5)


@pytest.mark.parametrize("target", ["multicategory", "regression"])
def test_several_classes_and_numbers_are_measured_by_their_mean(
    target: str, tmp_path: Path, store: TokenStore, runtime: Runtime
):
    store.label_names = ["a;b", "b", "c;a"] if target == "multicategory" else ["1", "2.5", "4"]
    settings, data = replace(CONFIG.classifier, max_len=60, target=target), replace(CONFIG.data, missing_label=None)
    whole = replace(CONFIG, classifier=settings, data=data)
    configs = [whole, replace(whole, model=BACKWARDS.model)]
    runs = [make_classifier(tmp_path / f"run{seed}", store, seed, config) for seed, config in enumerate(configs)]
    documents = split_documents(store, CONFIG).classifier_valid
    mean_NC = np.mean([one_by_one(run, [store.document(i) for i in documents]) for run in runs], axis=0)
    truth_N = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1]] if target == "multicategory" else [[1], [2.5], [4]])
    truth_NC = truth_N[store.labels[documents]]
    actual = evaluate_ensemble(runs, runtime)
    if target == "multicategory":
        assert actual["ensemble"]["accuracy"] == pytest.approx(((mean_NC > 0.5) == truth_NC).mean())
        loss_NC = -np.log(np.where(truth_NC == 1, mean_NC, 1 - mean_NC))
        assert actual["ensemble"]["valid_loss"] == pytest.approx(loss_NC.mean(), rel=1e-5)
    else:
        assert actual["ensemble"]["rmse"] == pytest.approx(np.sqrt(((mean_NC - truth_NC) ** 2).mean()), rel=1e-5)
    for member, run in zip(actual["members"], runs, strict=True):
        alone = evaluate(run, runtime)["classifier"]
        assert member["valid_loss"] == pytest.approx(alone["valid_loss"], rel=1e-9)


def one_by_one(run: Path, documents: list[np.ndarray]) -> np.ndarray:
    """Return probabilities of documents, each in its own batch: [documents, classes]."""
    classifier = load_classifier(run)
    direction = -1 if classifier.config.model.backwards else 1
    widths = [-(-len(document) // SEQ_LEN) * SEQ_LEN for document in documents]
    alone = [pad_chunks([document[::direction]], width, SEQ_LEN) for document, width in zip(documents, widths, strict=True)]
    return np.concatenate([classifier._outputs(x_1T) for x_1T in alone])


@pytest.mark.parametrize(
    ("config", "printed"),
    [
        (replace(CONFIG, seed=7), r"run1/classifier was validated on other documents than .*run0/classifier.* same seed"),
        (replace(CONFIG, data=replace(CONFIG.data, valid_pct=0.2)), "same seed and data.valid_pct"),
    ],
)
def test_other_validation_documents_are_refused(tmp_path: Path, store: TokenStore, runtime: Runtime, config, printed: str):
    runs = [make_classifier(tmp_path / f"run{i}", store, i, c) for i, c in enumerate((CONFIG, config))]
    with pytest.raises(UserError, match=printed):
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
    printed = r"run2/classifier has other labels \(a, c, b\) than .*run0/classifier \(a, b, c\)"
    with pytest.raises(UserError, match=printed):
        load_ensemble(runs)
    with pytest.raises(UserError, match=printed):
        evaluate_ensemble(runs, runtime)


def test_one_classifier_is_no_ensemble(runs: list[Path], capsys: pytest.CaptureFixture[str]):
    assert main(["ensemble", str(runs[0]), "--text", "a b"]) == 2
    assert "an ensemble of 1: name at least two runs" in capsys.readouterr().err
    assert main(["ensemble", *map(str, runs), "--output", "labels.jsonl"]) == 2
    assert (
        "--output, --prefix, --text-col and --set are for labels: give texts with --text or --file"
        in capsys.readouterr().err
    )


def test_features_are_of_the_baseline(runs: list[Path], capsys: pytest.CaptureFixture[str]):
    assert main(["ensemble", *map(str, runs), "--baseline-features", "lsa"]) == 2
    assert "--baseline-features lsa needs --with-baseline: add it, or leave both out" in capsys.readouterr().err


def test_options_of_metrics_are_not_ignored_for_labels(runs: list[Path], capsys: pytest.CaptureFixture[str]):
    for option in (["--json"], ["--precision", "fp32"]):
        assert main(["ensemble", *map(str, runs), "--text", "a b", *option]) == 2
        assert "--json and --precision are for metrics" in capsys.readouterr().err


def split_in_three(store: TokenStore) -> None:
    """Make the last 20 documents the test split."""
    store.meta["splits"] = {"train": [0, 60], "test": [60, 80]}


def by_split(store: TokenStore, config: Config = CONFIG) -> dict[str, np.ndarray]:
    splits = split_documents(store, config)
    assert len(splits.test) == 20
    return {"valid": splits.classifier_valid, "test": splits.test}


def best_temperature(p_NC: np.ndarray, label_N: np.ndarray) -> float:
    """Return the best temperature of a fine grid, with a standard normal prior on its logarithm."""
    grid = np.exp(np.linspace(np.log(BOUNDS[0]), np.log(BOUNDS[1]), 20001))
    rows = np.arange(len(label_N))
    return min(grid, key=lambda t: -np.log(at_temperature(p_NC, t)[rows, label_N]).sum() + np.log(t) ** 2 / 2)


def at_temperature(p_NC: np.ndarray, temperature: float) -> np.ndarray:
    powers_NC = p_NC ** (1 / temperature)
    return powers_NC / powers_NC.sum(1, keepdims=True)


def answers_of_run(run: Path, store: TokenStore, documents_N: np.ndarray, runtime: Runtime) -> np.ndarray:
    return compute_answers(read_bundle(run / "classifier"), store, documents_N, runtime).numpy()


def test_the_baseline_is_a_member_at_temperatures_fitted_to_valid(
    runs: list[Path], store: TokenStore, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
):
    split_in_three(store)
    said_2N = [answers_of_run(run, store, np.arange(80), runtime).argmax(1) for run in runs[:2]]
    store.labels[:] = np.where(
        np.arange(80) % 3 == 0, said_2N[0], np.where(np.arange(80) % 3 == 1, said_2N[1], store.labels)
    )
    documents, config = by_split(store), read_bundle(runs[0] / "classifier").config
    _, metadata, linear, _ = baseline_answers(config, runtime, store)
    answers = [{side: answers_of_run(run, store, part, runtime) for side, part in documents.items()} for run in runs[:2]]
    answers.append(linear)
    temperatures = [best_temperature(part["valid"], store.labels[documents["valid"]]) for part in answers]
    assert len({round(temperature, 2) for temperature in temperatures}) == 3
    actual = evaluate_ensemble(runs[:2], runtime, with_baseline=True)
    members = [*actual["members"], actual["baseline"]]
    assert [member["temperature"] for member in members] == pytest.approx(temperatures, rel=1e-3)
    for side, documents_N in documents.items():
        scaled = [at_temperature(part[side], t) for part, t in zip(answers, temperatures, strict=True)]
        mean_NC, label_N = np.mean(scaled, axis=0), store.labels[documents_N]
        figures = actual["ensemble"] if side == "valid" else actual["ensemble"]["test"]
        loss = -np.log(mean_NC[np.arange(len(label_N)), label_N]).mean()
        assert figures["valid_loss" if side == "valid" else "loss"] == pytest.approx(loss, rel=1e-4)
        assert figures["accuracy"] == pytest.approx((mean_NC.argmax(1) == label_N).mean())
    other = evaluate_ensemble(runs[:1], runtime, with_baseline=True, baseline_features="lsa")["baseline"]
    assert (actual["baseline"]["features"], other["features"]) == ("tfidf", "lsa")
    baseline = compute_baseline(config, runtime, store)
    assert actual["baseline"]["C"] == metadata["C"] == baseline["C"]
    assert actual["baseline"]["accuracy"] == baseline["valid"]["accuracy"]
    assert actual["baseline"]["test"]["accuracy_interval"] == baseline["test"]["accuracy_interval"]
    monkeypatch.setattr(evaluate_data_module, "prepare", lambda config, runtime: store)
    for member, run in zip(actual["members"], runs, strict=False):
        alone = evaluate(run, runtime, split="test")["classifier"]
        assert member["test"].keys() > {"loss", "accuracy", "accuracy_interval"}
        for name, value in member["test"].items():
            assert value == pytest.approx(alone[name]), name
        assert member["valid_loss"] == pytest.approx(evaluate(run, runtime)["classifier"]["valid_loss"])  # as it is


def test_labels_of_the_test_split_do_not_change_a_temperature(runs: list[Path], store: TokenStore, runtime: Runtime):
    split_in_three(store)
    actual = []
    for shift in (0, 1):
        store.labels[60:] = (store.labels[60:] + shift) % 3
        actual.append(evaluate_ensemble(runs[:1], runtime, with_baseline=True))
    assert actual[0]["ensemble"]["test"]["accuracy"] != actual[1]["ensemble"]["test"]["accuracy"]
    assert actual[0]["members"][0]["temperature"] == actual[1]["members"][0]["temperature"]
    assert actual[0]["baseline"]["accuracy"] == actual[1]["baseline"]["accuracy"]


def test_temperatures_of_several_classes_are_of_their_logits():
    p_NC, y_NC = torch.tensor([[0.9, 0.2], [0.6, 0.5]]).double(), torch.tensor([[1.0, 1], [0, 0]])
    temperature = fit_temperature(p_NC, y_NC, "multicategory")
    scaled = {t: scale_answers(p_NC, t, "multicategory") for t in (temperature / 1.02, temperature, temperature * 1.02)}
    losses = {t: float(torch.nn.functional.binary_cross_entropy(part_NC, y_NC.double())) for t, part_NC in scaled.items()}
    assert min(losses, key=losses.__getitem__) == temperature
    assert BOUNDS[0] * 1.1 < temperature < BOUNDS[1] / 1.1
    torch.testing.assert_close(
        scale_answers(p_NC, 2.0, "multicategory")[0, 0], torch.tensor(0.75).double()
    )  # 9 to 1, 3 to 1


def test_numbers_are_averaged_with_the_baseline_as_they_are(tmp_path: Path, store: TokenStore, runtime: Runtime):
    split_in_three(store)
    store.label_names = ["1", "2.5", "4"]
    settings = replace(CONFIG.classifier, target="regression")
    config = replace(CONFIG, classifier=settings, data=replace(CONFIG.data, missing_label=None))
    run = make_classifier(tmp_path / "run", store, 0, config)
    documents = by_split(store, config)
    _, _, linear, _ = baseline_answers(config, runtime, store)
    actual = evaluate_ensemble([run], runtime, with_baseline=True)
    assert actual["members"][0]["temperature"] is None
    for side, figures in (("valid", actual["ensemble"]), ("test", actual["ensemble"]["test"])):
        mean_N1 = (answers_of_run(run, store, documents[side], runtime) + linear[side]) / 2
        errors_N = mean_N1[:, 0] - np.array([1, 2.5, 4])[store.labels[documents[side]]]
        assert figures["rmse"] == pytest.approx(np.sqrt((errors_N**2).mean()), rel=1e-5)
    assert list(describe_ensemble(actual))[-1] == ("numbers are averaged unscaled: a temperature applies to probabilities")
    with pytest.raises(UserError, match="baseline_features=naive_bayes is for classes: set tfidf or lsa"):
        evaluate_ensemble([run], runtime, with_baseline=True, baseline_features="naive_bayes")


def test_the_command_prints_a_table_or_json(runs: list[Path], store: TokenStore, capsys: pytest.CaptureFixture[str]):
    split_in_three(store)
    words = ["ensemble", str(runs[0]), "--with-baseline", "--precision", "fp32"]
    assert main([*words, "--json"]) == 0
    out = capsys.readouterr().out
    actual = json.loads(out[out.index("{") :])
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    models = {str(runs[0]): actual["members"][0], "baseline": actual["baseline"], "ensemble": actual["ensemble"]}
    for model, valid in models.items():
        on_valid, on_test = [line for line in lines if line.startswith(f"{model} ")]
        assert f"{valid['accuracy']:.4f}" in on_valid
        low, high = valid["test"]["accuracy_interval"]
        assert f"{valid['test']['accuracy']:.4f}" in on_test
        assert on_test.endswith(f"{low:.4f} to {high:.4f}")
    assert any(f"{actual['members'][0]['temperature']:.3f}" in line for line in lines)
    assert main([*words, "--text", "a b"]) == 2
    assert "--with-baseline and --save do not label texts" in capsys.readouterr().err
    assert main(["ensemble", *map(str, runs), "--precision", "fp32"]) == 0
    assert "temperature" not in capsys.readouterr().out


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
    for line, prediction in zip(written, expected, strict=True):
        assert line["predicted_label"] == prediction.label
        for name, probability in prediction.probabilities.items():
            assert line[f"predicted_probability_{name}"] == pytest.approx(probability)


def test_forward_and_backward_are_measured_on_any_number_of_ranks(run_dirs: dict[str, Path], corpus: Path, recipe: Path):
    folder = run_dirs["caches"]
    words = ["run", recipe, f"data.path={corpus}", *TINY, *LEARNING, f"data.cache_dir={folder}/cache1", f"runs_dir={folder}"]
    succeed([*words, "name=backwards", "model.backwards=true"])
    runs = [run_dirs["one"], folder / "backwards"]
    actual = []
    for processes in (1, 2):
        text = succeed(["ensemble", *runs, "--precision", "fp32", "--with-baseline", "--json"], processes)
        actual.append(json.loads(text[text.index("{") :]))
    assert actual[0]["baseline"].keys() == actual[1]["baseline"].keys()
    for name, value in actual[0]["baseline"].items():
        expected = actual[1]["baseline"][name]
        assert value == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-6)), name
    for one, two in zip(actual[0]["members"], actual[1]["members"], strict=True):
        assert one["temperature"] == pytest.approx(two["temperature"], rel=1e-3)
    for name in ("valid_loss", "accuracy", "f1_macro", "expected_calibration_error", "brier_score"):
        assert actual[0]["ensemble"][name] == pytest.approx(actual[1]["ensemble"][name], rel=1e-6), name
    assert actual[0]["ensemble"]["confusion_matrix"] == actual[1]["ensemble"]["confusion_matrix"]
    losses = [member["valid_loss"] for member in actual[0]["members"]]
    assert losses[0] != losses[1]
    assert actual[0]["ensemble"]["valid_loss"] < actual[0]["baseline"]["valid_loss"]
    assert succeed(["ensemble", *runs, "--text", " ".join(TOPICS["food"] * 3)]).startswith("food (0)")
