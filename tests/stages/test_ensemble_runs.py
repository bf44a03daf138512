"""Ensembles as runs: both directions or the folds of one config, killed and resumed, on one rank and on two."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, TOPICS, command, command_here, make_folder, succeed, succeed_here
from killing import rows_read, start

from ulmfit_dist import load_classifier
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.prediction_table import read_predictions
from ulmfit_dist.models.ensemble_file import read_ensemble
from ulmfit_dist.tracking.run_lock import RunLock

pytestmark = pytest.mark.distributed  # W&B starts a process

SHORT = (
    *TINY,
    "runtime.precision=fp64",
    "classifier.baseline=true",
    "lm.phases=[{epochs: 1, lr: 5e-2}]",
    "classifier.phases=[{epochs: 2, lr: 2e-2}]",
    "checkpoint.interval_steps=4",
    "tracking.wandb_mode=offline",
)
TEXTS = [" ".join(words[:6]) for words in TOPICS.values()]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 documents to train on and 24 to test on."""
    folder = tmp_path_factory.mktemp("ensembles")
    make_folder(folder / "texts" / "train", per_class=24)
    make_folder(folder / "texts" / "test", per_class=8, seed=1)
    return folder


def words(texts: Path, recipe: Path, runs: Path, *others: str) -> list[object]:
    place = [f"data.path={texts}/texts", f"data.cache_dir={texts}/cache", f"runs_dir={runs}"]
    return [recipe, *SHORT, *place, *others]


@pytest.fixture(scope="module")
def pair(texts: Path, recipe: Path) -> Path:
    """The run directory of both directions, trained by one rank that nothing disturbs."""
    printed = succeed_here(["run", *words(texts, recipe, texts / "one", "name=pair"), "--both-directions"])
    assert "plan of pair: 2 runs, then their mean" in printed
    (texts / "one" / "printed").write_text(printed)
    return texts / "one" / "pair"


def numbers(value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers of JSON with their keys."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from ((f"{key}.{name}", number) for name, number in numbers(item))
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)):
        yield "", float(value)


def assert_same_figures(run: Path, other: Path) -> None:
    """Assert that two ensembles have the same choices, temperatures and figures, and gave the same answers."""
    for name, section in (("ensemble.json", None), ("summary.json", "ensemble"), ("summary.json", "classifier")):
        parts = [json.loads((folder / name).read_text()) for folder in (run, other)]
        one, two = (list(numbers(part[section] if section else part)) for part in parts)
        assert [key for key, _ in one] == [key for key, _ in two]
        np.testing.assert_allclose([number for _, number in two], [number for _, number in one], rtol=1e-9, atol=1e-12)
    for split, answers in read_predictions(run).splits.items():
        np.testing.assert_allclose(read_predictions(other).splits[split].answers, answers.answers, rtol=1e-9, atol=1e-12)


def test_both_directions_and_their_mean_are_one_run(pair: Path, texts: Path, recipe: Path):
    file = read_ensemble(pair)
    assert [member.run for member in file.members] == ["../pair-forward", "../pair-backward"]
    configs = [(pair.parent / f"pair-{name}" / "config.yaml").read_text() for name in ("forward", "backward")]
    assert ["backwards: true" in config for config in configs] == [False, True]
    assert all("group: pair" in config for config in configs)
    assert len(list(pair.parent.glob("pair*/wandb/offline-run-*"))) == 3
    forward, backward = (read_predictions(pair.parent / f"pair-{name}") for name in ("forward", "backward"))
    combinations = file.selection["combinations"]
    assert len(combinations) == 7
    lowers = combinations["forward + backward + linear"]["valid_loss"] < combinations["forward + backward"]["valid_loss"]
    gain, error = file.selection["gain"], file.selection["standard_error"]
    assert lowers is (gain > 0)
    assert file.linear_votes is (gain > error)

    def scaled(answers_NC: np.ndarray, temperature: float) -> np.ndarray:
        powers = answers_NC ** (1 / temperature)
        return powers / powers.sum(1, keepdims=True)

    mean = read_predictions(pair)
    for split in ("valid", "test"):
        members = [
            scaled(run.splits[split].answers, member.temperature)
            for run, member in zip((forward, backward), file.members, strict=True)
        ]
        if not file.linear_votes:
            np.testing.assert_allclose(mean.splits[split].answers, np.mean(members, axis=0), rtol=1e-9)
        y_N = mean.splits[split].y
        loss = -np.log(np.mean(members, axis=0)[np.arange(len(y_N)), y_N]).mean()
        if split == "valid":
            assert combinations["forward + backward"]["valid_loss"] == pytest.approx(loss, rel=1e-6)
    summary = json.loads((pair / "summary.json").read_text())
    assert summary["classifier"]["test"]["accuracy_interval"]
    assert summary["ensemble"]["members"][0]["test"]["accuracy"] is not None
    html = (pair / "report.html").read_text()
    for expected in ("forward + backward + linear", "pair-backward", "Mean of, on valid", "config.yaml --both-directions"):
        assert expected in html


def test_the_ensemble_is_used_like_a_run(pair: Path, tmp_path: Path):
    classifier = load_classifier(pair)
    answers = classifier.predict_proba(TEXTS)
    printed = succeed_here(["predict", pair, *TEXTS]).splitlines()
    assert [line.split()[0] for line in printed] == [prediction.label for prediction in classifier.predict(TEXTS)]
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    succeed_here(["predict", pair, "--file", tmp_path / "texts.txt", "--output", tmp_path / "labels.jsonl"])
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    written = [[row[f"predicted_probability_{label}"] for label in classifier.labels] for row in rows]
    np.testing.assert_allclose(written, answers)
    summary = json.loads((pair / "summary.json").read_text())
    for split, key in (("valid", "valid_loss"), ("test", "loss")):
        expected = summary["classifier"] if split == "valid" else summary["classifier"]["test"]
        for options in (["evaluate", pair, "--split", split], ["ensemble", pair]):
            text = succeed_here([*options, "--precision", "fp64", "--json"])
            figures = json.loads(text[text.index("{") :])
            actual = figures.get("classifier") or figures["ensemble"]
            actual = actual["test"] if options[0] == "ensemble" and split == "test" else actual
            assert actual[key] == pytest.approx(expected[key], rel=1e-9)
    compared = succeed_here(["compare", pair.parent / "pair-forward", pair])
    assert "test: 24 documents" in compared
    for refused in (["export", pair, "--to", "fastai"], ["generate", pair, "a"], ["export", pair, "--to", "onnx"]):
        result = command_here(refused)
        assert result.returncode == 2
        assert f"{pair} is an ensemble, which has no model of its own: name one of its members" in result.stderr
    result = command_here(["ensemble", pair, "--with-baseline"])
    assert "leave out --with-baseline" in result.stderr


def test_trained_runs_and_the_linear_model_are_saved_as_a_run(pair: Path, tmp_path: Path):
    runs, mean = pair.parent, pair.parent / "mean"
    members = [runs / "pair-forward", runs / "pair-backward"]
    printed = succeed_here(["ensemble", *members, "--with-baseline", "--save", mean])
    assert "mean: mean of 2 classifiers and the linear model: it " in printed
    file, of_pair = read_ensemble(mean), read_ensemble(pair)
    assert (file.kind, file.linear_votes) == ("runs", True)
    assert [member.run for member in file.members] == ["../pair-forward", "../pair-backward"]
    names = {"pair-forward": "forward", "pair-backward": "backward"}
    of_names = {
        " + ".join(names.get(name, name) for name in voters.split(" + ")): figures
        for voters, figures in file.selection["combinations"].items()
    }
    assert dict(numbers(of_names)) == pytest.approx(dict(numbers(of_pair.selection["combinations"])), rel=1e-12)
    summary = json.loads((mean / "summary.json").read_text())
    best = of_pair.selection["combinations"]["forward + backward + linear"]
    assert summary["classifier"]["valid_loss"] == pytest.approx(best["valid_loss"], rel=1e-12)
    assert summary["classifier"]["test"]["accuracy_interval"]
    classifier = load_classifier(mean)
    texts = [prediction.label for prediction in classifier.predict(TEXTS)]
    assert [line.split()[0] for line in succeed_here(["predict", mean, *TEXTS]).splitlines()] == texts
    assert f"--with-baseline --baseline-features tfidf --save {mean}" in (mean / "report.html").read_text()
    (mean / "ensemble.json").rename(tmp_path / "first.json")  # the predictions of the members make the same one again
    succeed_here(["ensemble", *members, "--with-baseline", "--save", mean])
    assert read_ensemble(mean) == file
    succeed_here(["ensemble", *members, "--save", mean])  # other members: another ensemble
    assert read_ensemble(mean).linear_votes is False


def test_what_cannot_be_saved_as_an_ensemble_is_named(pair: Path, tmp_path: Path):
    one = pair.parent / "pair-forward"
    for arguments, message in (
        ([one, "--with-baseline", "--save", tmp_path / "mean"], f"is not beside {one}: the ensemble and its runs"),
        ([one, one, "--save", pair.parent / "mean-2"], "two runs are named pair-forward"),
        ([one, "--save", pair.parent / "mean-2"], "an ensemble of 1: name at least two runs"),
        ([one, "--with-baseline", "--save", one], f"{one} holds a training (lm)"),
        ([one, "--with-baseline", "--save", pair], f"{pair} holds an ensemble of run --both-directions"),
        ([one, "--baseline-features", "lsa"], "--baseline-features lsa needs --with-baseline"),
        ([pair, "--with-baseline", "--save", pair.parent / "mean-2"], f"{pair} is an ensemble, which has no model"),
        ([one, "--with-baseline", "--save", pair.parent / "a b"], "name"),
        ([one, "--with-baseline", "--save", pair.parent / "mean-2", "--json"], "are not for --save"),
        ([one, "--with-baseline", "--save", pair.parent / "mean-2", "--precision", "fp64"], "are not for --save"),
        ([one, "--save", pair.parent / "mean-2", "--text", "a"], "'ulmfit-dist predict FOLDER'"),
    ):
        refused = command_here(["ensemble", *arguments])
        assert refused.returncode == 2, arguments
        assert message in refused.stderr
        assert refused.stderr.count("\n") == 1
    shutil.copytree(one / "classifier", tmp_path / "exported")
    refused = command_here(["ensemble", tmp_path / "exported", "--with-baseline", "--save", tmp_path / "mean"])
    assert "exported: not a run directory: --save needs runs, such as runs/imdb" in refused.stderr
    assert not (pair.parent / "mean-2").exists()


def test_two_ranks_that_are_stopped_and_resumed_make_the_same_ensemble(
    pair: Path, texts: Path, recipe: Path, tmp_path: Path
):
    command = ["run", *words(texts, recipe, tmp_path, "name=pair"), "--both-directions"]
    notes = tmp_path / "notes"
    process = start(command, 2, notes)
    while process.poll() is None and not (tmp_path / "pair-backward" / "metrics.jsonl").exists():
        time.sleep(0.02)
    noted = len(list(rows_read(notes)))
    while process.poll() is None and len(list(rows_read(notes))) < noted + 40:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    output, errors = process.communicate()
    assert process.returncode != 0
    assert "stopped by SIGTERM after step" in errors, output + errors
    assert not (tmp_path / "pair").exists()
    resumed = start(command, 2, notes)
    output, errors = resumed.communicate()
    assert resumed.returncode == 0, output + errors
    assert "resumes from" in output
    assert_same_figures(pair, tmp_path / "pair")
    models = [path.stat().st_mtime_ns for path in tmp_path.glob("pair-*/*/training.json")]
    written = (tmp_path / "pair" / "ensemble.json").stat().st_mtime_ns
    again = succeed_here(["run", *words(texts, recipe, tmp_path, "name=pair"), "--both-directions"])
    assert "pair: mean of 2 classifiers" in again  # its figures, though nothing is left to do
    assert [path.stat().st_mtime_ns for path in tmp_path.glob("pair-*/*/training.json")] == models
    assert (tmp_path / "pair" / "ensemble.json").stat().st_mtime_ns == written


def test_folds_are_an_ensemble_measured_out_of_fold(texts: Path, recipe: Path, tmp_path: Path):
    given = words(texts, recipe, tmp_path, "name=cv", "data.folds=2", "lm.valid_pct=0.2")
    succeed_here(["cross-validate", *given, "--ensemble"])
    run, file = tmp_path / "cv", read_ensemble(tmp_path / "cv")
    assert [member.run for member in file.members] == ["../cv-fold-0", "../cv-fold-1"]
    assert not list(tmp_path.glob("cv-fold-*/predictions.parquet"))  # a fold is not scored on test
    mean = read_predictions(run)
    assert len(mean.splits["valid"].y) == 72
    assert len(mean.splits["test"].y) == 24
    summary = json.loads((run / "summary.json").read_text())
    assert summary["classifier"]["valid_loss"] == pytest.approx(
        file.selection["combinations"]["classifiers + linear" if file.linear_votes else "classifiers"]["valid_loss"]
    )
    averages = json.loads((run / "cross_validation.json").read_text())["classifier"]["accuracy"]
    assert averages["mean"] == pytest.approx(np.mean([figures["accuracy"] for figures in summary["ensemble"]["members"]]))
    assert load_classifier(run).predict(TEXTS)[0].label in TOPICS
    text = succeed_here(["evaluate", run, "--precision", "fp64", "--json"])
    figures = json.loads(text[text.index("{") :])
    assert figures["classifier"]["valid_loss"] == pytest.approx(summary["classifier"]["valid_loss"], rel=1e-9)

    shutil.copytree(run, tmp_path / "kept")
    shutil.rmtree(run)
    succeed(["cross-validate", *given, "--ensemble"], 2)  # the folds are trained: two ranks make the ensemble only
    assert_same_figures(tmp_path / "kept", run)
    assert (run / "ensemble.json").read_text().count("linear-") == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.backwards=true"], "model.backwards=true, but --both-directions trains both"),
        (["data.folds=3"], "use cross-validate --ensemble"),
        (["model.pretrained=some/folder"], "model.pretrained=some/folder holds a model of one direction"),
        (["classifier.encoder=runs/other"], "classifier.encoder=runs/other holds a model of one direction"),
    ],
)
def test_what_cannot_be_trained_in_both_directions_is_one_line(
    overrides: list[str], message: str, texts: Path, recipe: Path, tmp_path: Path
):
    result = command_here(["run", *words(texts, recipe, tmp_path, *overrides), "--both-directions"])
    assert (result.returncode, list(tmp_path.iterdir())) == (2, [])
    assert message in result.stderr


def test_an_ensemble_and_a_run_do_not_share_a_name(pair: Path, texts: Path, recipe: Path):
    for name, option, message in [
        ("pair", [], "holds an ensemble (run --both-directions): give this run another name, such as name=pair-2"),
        ("pair-forward", ["--both-directions"], "holds a training (lm): give the ensemble another name"),
    ]:
        result = command_here(["run", *words(texts, recipe, pair.parent, f"name={name}"), *option])
        assert result.returncode == 2
        assert message in result.stderr
    result = command_here(["self-train", *words(texts, recipe, pair.parent, "name=pair-forward")])
    assert "holds a training (lm): give the self-training another name" in result.stderr
    result = command_here(["cross-validate", *words(texts, recipe, pair.parent, "name=pair", "data.folds=2"), "--ensemble"])
    assert "holds an ensemble of run --both-directions: give this one another name" in result.stderr


def test_a_direction_that_another_process_trains_keeps_its_unfinished_checkpoint(pair: Path, texts: Path, recipe: Path):
    config = Config(name="pair-backward", runs_dir=str(pair.parent))
    unfinished = config.checkpoints_dir / "classifier" / ".step-99999999.tmp"
    unfinished.mkdir()
    with RunLock(config):
        result = command_here(["run", *words(texts, recipe, pair.parent, "name=pair"), "--both-directions"])
    assert (result.returncode, unfinished.is_dir()) == (2, True)
    assert "pair-backward is locked by another training process" in result.stderr
    unfinished.rmdir()


def test_a_launcher_passes_the_option(texts: Path, recipe: Path, tmp_path: Path):
    script = succeed_here(["submit", *words(texts, recipe, tmp_path), "--both-directions", "--dry-run"])
    assert "--both-directions" in next(line for line in script.splitlines() if line.startswith("on_nodes run"))
    assert command(["run", "--help"]).stdout.count("--both-directions") >= 1
