"""Self-training: the same on any number of ranks and by accumulation, killed and resumed, and what it refuses."""

import json
import os
import random
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import TINY, TOPICS, command_here, make_text, succeed, succeed_here
from corpora import WRITERS
from killing import BY_THE_CLOCK, finish, kill_all, start, weights

from ulmfit_dist import load_classifier
from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.data.prediction_table import read_predictions
from ulmfit_dist.data.pseudo_labels import PseudoLabels, read_pseudo_labels
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages import self_train
from ulmfit_dist.stages.run_directories import check_free_for_self_training
from ulmfit_dist.stages.self_train import check_self_training, config_of_round, config_of_student

RECIPE = (
    *TINY,
    "runtime.precision=fp64",
    "data.source=csv",
    "lm.drop_mult=0.2",
    "lm.phases=[{epochs: 1, lr: 2e-2}]",
    "classifier.drop_mult=0.2",
    "classifier.grad_clip=0.1",
    "classifier.baseline=true",
    "classifier.baseline_features=lsa",
    "classifier.phases=[{epochs: 4, lr: 1e-2, freeze_to: 0}]",
    "self_training={rounds: 1, scored_documents: 100, phases: [{epochs: 3, lr: 1e-2, freeze_to: 0}]}",
    "checkpoint.interval_steps=7",
    "tracking.log_interval=5",
    "tracking.wandb_mode=disabled",
)
CUTS = {"one": (1, []), "two": (2, []), "four": (4, []), "accumulated": (1, ["runtime.micro_batch_size=2"])}
SIZES = {"train": 48, "unlabelled": 90, "valid": 30, "test": 30}


def write_texts(folder: Path) -> None:
    """Write splits of three topics in turn, those of `unlabelled` without a label."""
    rng, topics = random.Random(3), list(TOPICS)
    for split, number in SIZES.items():
        rows = [(make_text(topics[i % 3], rng.randint(5, 45), rng), topics[i % 3]) for i in range(number)]
        WRITERS["csv"][1](str(folder / split), [(text, None if split == "unlabelled" else topic) for text, topic in rows])


def words_of(folder: Path, recipe: Path, texts: Path | None = None) -> list[object]:
    texts = texts or folder
    place = [f"data.path={texts}/texts", f"data.cache_dir={texts}/cache", f"runs_dir={folder}"]
    return ["self-train", recipe, *RECIPE, *place]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A folder of the rounds by cut."""
    folder = tmp_path_factory.mktemp("self")
    write_texts(folder / "texts")
    words = words_of(folder, recipe)
    succeed(["prepare", *words[1:]])

    def train(name: str) -> None:
        processes, cut = CUTS[name]
        (folder / f"{name}.out").write_text(succeed([*words, *cut, f"name={name}"], processes))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, CUTS))
    return folder


def result_of(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "self_training.json").read_text())


def summary_of(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def rounds_of(folder: Path, name: str) -> list[Path]:
    return [folder / one["run"] for one in result_of(folder, name)["rounds"]]


@pytest.mark.parametrize("other", ["two", "four", "accumulated"])
def test_rounds_are_those_of_one_rank(trained: Path, other: str):
    expected, actual = result_of(trained, "one"), result_of(trained, other)
    assert [actual[key] for key in ("metric", "best", "end")] == [expected[key] for key in ("metric", "best", "end")]
    assert len(actual["rounds"]) == len(expected["rounds"]) >= 2
    for one, reference in zip(rounds_of(trained, other), rounds_of(trained, "one"), strict=True):
        ours, reference_weights = weights(one, "classifier"), weights(reference, "classifier")
        for name, tensor in reference_weights.items():
            torch.testing.assert_close(ours[name], tensor, rtol=1e-9, atol=1e-9)
    for one, reference in zip(actual["rounds"][1:], expected["rounds"][1:], strict=True):
        files = [read_pseudo_labels(trained / each["run"] / "pseudo_labels.parquet") for each in (one, reference)]
        assert files[0].digest == files[1].digest
        np.testing.assert_allclose(files[0].confidences, files[1].confidences, atol=2e-6)
        assert one["documents"] == reference["documents"]
        assert one["temperatures"] == pytest.approx(reference["temperatures"], rel=1e-6)
    test = [summary_of(trained / name)["classifier"]["test"] for name in (other, "one")]
    for name, value in test[1].items():
        assert test[0][name] == pytest.approx(value, rel=1e-9), name


def test_the_run_has_the_best_round_and_test_is_scored_once(trained: Path):
    result = result_of(trained, "one")
    rounds, values = rounds_of(trained, "one"), [one["valid"]["accuracy"] for one in result["rounds"]]
    assert values.index(max(values)) == result["best"] > 0
    for run, one in zip(rounds, result["rounds"], strict=True):
        summary = summary_of(run)
        assert "test" not in summary["classifier"]
        assert set(read_predictions(run).splits) == {"valid"}
        assert summary["classifier"]["accuracy"] == one["valid"]["accuracy"]
    run, best = trained / "one", rounds[result["best"]]
    summary = summary_of(run)
    assert summary["classifier"]["test"]["num_documents"] == SIZES["test"]
    assert summary["baseline"]["test"]["accuracy"] > 0.5
    assert set(read_predictions(run).splits) == {"valid", "test"}
    ours, reference_weights = weights(run, "classifier"), weights(best, "classifier")
    assert all(torch.equal(ours[name], reference_weights[name]) for name in reference_weights)
    assert load_classifier(run).predict(["match goal team coach"])[0].label in TOPICS
    assert [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"stage": "classifier"' in line] == (
        (best / "metrics.jsonl").read_text().splitlines()
    )
    page = (run / "report.html").read_text()
    assert 'id="rounds-1"' in page
    assert f"{result['best']}, best" in page
    assert "ulmfit-dist self-train" in page
    assert result["end"] in (trained / "one.out").read_text()
    figures = json.loads(succeed_here(["evaluate", run, "--json"]))["classifier"]
    assert figures["accuracy"] == summary["classifier"]["accuracy"]


def test_pseudo_labels_are_of_unlabelled_documents_in_equal_parts(trained: Path):
    first = result_of(trained, "one")["rounds"][1]
    labels = read_pseudo_labels(trained / first["run"] / "pseudo_labels.parquet")
    assert set(labels.documents.tolist()) <= set(range(SIZES["train"] + SIZES["valid"], sum(SIZES.values()) - SIZES["test"]))
    assert labels.counts() == first["documents"]
    assert max(first["documents"].values()) <= SIZES["unlabelled"] / 3
    config = load_config(trained / first["run"] / "config.yaml")
    assert config.classifier.repeat_labelled == first["repeat_labelled"] == 1
    assert config.tracking.group == "one"
    models = [(run / "lm" / "model.safetensors").read_bytes() for run in rounds_of(trained, "one")]
    assert len(set(models)) == 1


def test_a_complete_training_does_nothing_again_and_another_config_is_one_line(
    trained: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    words = [*words_of(tmp_path / "copy", recipe, trained), "name=one"]
    runs = [*rounds_of(tmp_path / "copy", "one"), tmp_path / "copy" / "one"]
    before = [(path / "classifier" / "training.json").stat().st_mtime_ns for path in runs]
    scored = (runs[-1] / "predictions.parquet").stat().st_mtime_ns
    output = succeed_here(words)
    assert result_of(trained, "one")["end"] in output
    assert [(path / "classifier" / "training.json").stat().st_mtime_ns for path in runs] == before
    assert (runs[-1] / "predictions.parquet").stat().st_mtime_ns == scored

    refused = command_here([*words, "self_training.teacher=classifier"])
    assert refused.returncode == 2
    assert re.search(
        r"one-round-1/pseudo_labels.parquet was made with another self_training.teacher \(now classifier, then mean\): "
        r"start over with --fresh, or give the run another name, such as name=one-2\n",
        refused.stderr,
    )
    refused = command_here([*words, "classifier.baseline_features=tfidf"])
    assert "another classifier.baseline_features (now tfidf, then lsa): start over" in refused.stderr
    for stage in ("run", "classifier"):
        refused = command_here([stage, *words[1:]])
        assert (refused.returncode, "copy/one holds a self-training" in refused.stderr) == (2, True)
    refused = command_here([*words, "classifier.wd=0.5"])
    assert (refused.returncode, "was trained with another classifier.wd" in refused.stderr) == (2, True)
    (runs[1] / "pseudo_labels.parquet").write_bytes(b"half")
    refused = command_here(words)
    assert (refused.returncode, "one-round-1/pseudo_labels.parquet: damaged" in refused.stderr) == (2, True)


def test_killed_and_stopped_in_a_round_it_ends_with_the_same_bits(trained: Path, recipe: Path, tmp_path: Path):
    shutil.copytree(trained / "one-round-0", tmp_path / "one-round-0")  # its path in the language model's config differs
    words = [*words_of(tmp_path, recipe, trained), "name=one"]
    first, process = tmp_path / "one-round-1", start(words, 1, tmp_path / "notes")
    wait_for(process, lambda: list(first.glob("checkpoints/classifier/step-*[1-9]")))
    kill_all(process)
    labels = (first / "pseudo_labels.parquet").read_bytes()
    process = start(words, 1, tmp_path / "notes")
    wait_for(process, lambda: len(list(first.glob("checkpoints/classifier/step-*[1-9]"))) > 1)
    os.kill(process.pid, signal.SIGTERM)
    process.communicate()
    assert process.returncode == 85
    assert not (tmp_path / "one" / "classifier").exists()
    output = finish(start(words, 1, tmp_path / "notes"))
    assert "classifier: resumes from" in output
    assert (first / "pseudo_labels.parquet").read_bytes() == labels
    for run in [*rounds_of(trained, "one"), trained / "one"]:
        ours, reference_weights = weights(tmp_path / run.name, "classifier"), weights(run, "classifier")
        assert all(torch.equal(ours[name], reference_weights[name]) for name in reference_weights)
    assert without_times(result_of(tmp_path, "one")) == without_times(result_of(trained, "one"))


def wait_for(process, is_there) -> None:
    while not is_there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def without_times(result: dict) -> dict:
    rounds = [
        {
            **one,
            "seconds": 0,
            "valid": {name: value for name, value in one["valid"].items() if not name.endswith(BY_THE_CLOCK)},
        }
        for one in result["rounds"]
    ]
    return {**result, "rounds": rounds}


def test_students_start_over_and_labelled_documents_do_not_drown():
    config = load_config(
        None, ["data.path=x", "name=a", "self_training.labelled_share=0.2", "self_training.phases=[{epochs: 2}]"]
    )
    student = config_of_student(config, 2, num_labelled=100, num_pseudo=10_000)
    assert student.name == "a-round-2"
    assert student.classifier.pseudo_labels == "runs/a-round-2/pseudo_labels.parquet"
    assert student.classifier.repeat_labelled == 25
    assert [phase.epochs for phase in student.classifier.phases] == [2]
    assert config_of_student(config, 1, num_labelled=100, num_pseudo=100).classifier.repeat_labelled == 1
    assert config_of_round(config, 0).classifier.phases == config.classifier.phases
    assert config_of_round(config, 0).tracking.group == "a"


@pytest.mark.parametrize(
    ("accuracies", "best", "end"),
    [
        ((0.5, 0.5, 0.9), 0, "round 1 does not improve accuracy on valid"),
        ((0.5, 0.6, 0.55, 0.9), 1, "round 2 does not improve accuracy on valid"),
        ((0.5, 0.6, 0.7, 0.8), 3, "self_training.rounds=3 are complete"),
    ],
)
def test_rounds_end_with_the_first_that_does_not_improve(
    accuracies: tuple[float, ...], best: int, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = load_config(None, ["data.path=x", f"runs_dir={tmp_path}", "classifier.encoder=a"])
    config.run_dir.mkdir()
    teachers = []
    figures = iter(accuracies)

    def pseudo_labels(config: Config, number: int, *_: object) -> PseudoLabels:
        return PseudoLabels(np.arange(number), ["a"] * number, np.ones(number))

    monkeypatch.setattr(self_train, "_train_round", lambda *_: {"valid": {"accuracy": next(figures)}})
    monkeypatch.setattr(self_train, "_pseudo_labels", pseudo_labels)
    monkeypatch.setattr(self_train, "read_teacher", lambda config, run_dir, *_: teachers.append(run_dir.name))
    monkeypatch.setattr(self_train, "split_documents", lambda *_: SimpleNamespace(classifier_train=np.arange(9)))
    configs, result = self_train._train_rounds(config, Runtime(RuntimeConfig(precision="fp32")), None, False)
    assert (result["best"], result["end"]) == (best, end)
    assert teachers == [f"run-round-{i}" for i in range(len(configs) - 1)]
    assert {**result, "job": ""} == json.loads((tmp_path / "run" / "self_training.json").read_text())
    monkeypatch.setattr(self_train, "_pseudo_labels", lambda *_: PseudoLabels(np.arange(1), ["a"], np.ones(1)))
    figures = iter((0.5, 0.6, 0.7))
    _, result = self_train._train_rounds(config, Runtime(RuntimeConfig(precision="fp32")), None, False)
    assert (result["best"], result["end"]) == (1, "the pseudo-labels of round 2 are those of the round before")


def test_fresh_removes_the_rounds_once_per_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, runtime = load_config(None, ["data.path=x", f"runs_dir={tmp_path}"]), Runtime(RuntimeConfig(precision="fp32"))
    kept = [tmp_path / name / "classifier" for name in ("run", "run-2", "run-round-a")]
    removed = [tmp_path / f"run-round-{number}" / "classifier" for number in (0, 1)]

    def start_over() -> list[bool]:
        for folder in (*kept, *removed):
            folder.mkdir(parents=True, exist_ok=True)
        self_train._start_over(config, runtime)
        assert all(folder.is_dir() for folder in kept)
        return [folder.is_dir() for folder in removed]

    assert start_over() == [False, False]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    assert start_over() == [False, False]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert start_over() == [True, True]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "b")
    assert start_over() == [False, False]


def test_killed_while_it_removes_the_rounds_it_starts_over_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config, runtime = load_config(None, ["data.path=x", f"runs_dir={tmp_path}"]), Runtime(RuntimeConfig(precision="fp32"))
    for folder in ("run", "run-round-0"):
        (tmp_path / folder / "classifier").mkdir(parents=True)
    self_train._mark(config, runtime)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            self_train._start_over(config, runtime)
    check_free_for_self_training(config)
    self_train._start_over(config, runtime)
    assert not (tmp_path / "run-round-0" / "classifier").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["classifier.target=regression", "data.missing_label=null"],
            "self-train needs classifier.target=category, not regression",
        ),
        (["classifier.target=multicategory"], "self-train needs classifier.target=category, not multicategory"),
        (["data.folds=5"], "data.folds=5: self-train has no folds"),
        (["classifier.pseudo_labels=a.parquet"], "are set by self-train: leave them out"),
    ],
)
def test_what_it_does_not_support_is_one_line(overrides: list[str], message: str):
    with pytest.raises(UserError, match=re.escape(message)):
        check_self_training(load_config(None, ["data.path=x", *overrides]))


def test_without_unlabelled_texts_or_with_another_voter_it_is_one_line(trained: Path, recipe: Path, tmp_path: Path):
    write_texts(tmp_path / "texts")
    (tmp_path / "texts" / "unlabelled.csv").unlink()
    refused = command_here(words_of(tmp_path, recipe))
    assert refused.returncode == 2
    assert "no document without a label to train on: self-train needs an unlabelled split" in refused.stderr
    assert not list(tmp_path.glob("run-round-*"))
    refused = command_here([*words_of(tmp_path, recipe, trained), "self_training.voters=[nowhere]", "name=one"])
    assert refused.returncode == 2
    assert "nowhere: no classifier model here" in refused.stderr
