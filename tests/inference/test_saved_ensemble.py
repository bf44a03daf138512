"""The ensemble of a run directory: the mean that its file describes, and one line for members that are not those."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import command_here
from made_classifiers import CONFIG, lettered_store, make_classifier

from ulmfit_dist import load_classifier
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.targets import read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.saved_ensemble import SavedEnsemble
from ulmfit_dist.models.bundle import bundle_digest
from ulmfit_dist.models.ensemble_file import EnsembleFile, EnsembleMember, read_ensemble
from ulmfit_dist.models.linear import load_linear
from ulmfit_dist.stages.linear_fit import fit

BACKWARDS = replace(CONFIG, model=replace(CONFIG.model, backwards=True))
TEXTS = ["a b c d e f g", "q", "z y x w v u t s r q p o n m"]


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return lettered_store(tmp_path / "store")


@pytest.fixture
def run(tmp_path: Path, store: TokenStore) -> Path:
    """An ensemble of two untrained classifiers and a linear model."""
    runs = [make_classifier(tmp_path / f"run-{i}", store, i, config) for i, config in enumerate((CONFIG, BACKWARDS))]
    splits, targets = split_documents(store, CONFIG), read_targets(store, CONFIG.classifier, ";")
    run = tmp_path / "run"
    run.mkdir()
    fit(CONFIG, store, targets, splits.classifier_train, {"valid": splits.classifier_valid})[1]().save(run / "linear")
    write(run, runs, linear_votes=True)
    return run


def write(run: Path, runs: list[Path], linear_votes: bool) -> None:
    digests = [bundle_digest(folder / "classifier") for folder in runs]
    members = [
        EnsembleMember(f"../{runs[0].name}", digests[0], 2.0, "linear", 0.5),
        EnsembleMember(f"../{runs[1].name}", digests[1], 0.7),
    ]
    EnsembleFile("directions", "x", linear_votes, members, {"combinations": {}}).write(run)


def at_temperature(answers_NC: np.ndarray, temperature: float) -> np.ndarray:
    powers = answers_NC ** (1 / temperature)
    return powers / powers.sum(1, keepdims=True)


def test_it_answers_with_the_mean_at_the_temperatures_of_the_file(run: Path):
    members = [load_classifier(run.parent / f"run-{i}") for i in range(2)]
    parts = [at_temperature(member.predict_proba(TEXTS), t) for member, t in zip(members, (2.0, 0.7), strict=True)]
    linear_NC = load_linear(run / "linear").answers(members[0].encode(TEXTS))
    actual = load_classifier(run)
    assert isinstance(actual, SavedEnsemble)
    expected = np.mean([*parts, at_temperature(linear_NC, 0.5)], axis=0)
    np.testing.assert_allclose(actual.predict_proba(TEXTS), expected, rtol=1e-12)
    with_linear = actual.digest
    write(run, [run.parent / f"run-{i}" for i in range(2)], linear_votes=False)
    np.testing.assert_allclose(load_classifier(run).predict_proba(TEXTS), np.mean(parts, axis=0), rtol=1e-12)
    assert load_classifier(run).digest != with_linear


def test_folders_that_are_moved_together_stay_an_ensemble(run: Path, tmp_path: Path):
    expected = load_classifier(run).predict_proba(TEXTS)
    (tmp_path / "elsewhere").mkdir()
    for name in ("run", "run-0", "run-1"):
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    np.testing.assert_array_equal(load_classifier(tmp_path / "elsewhere" / "run").predict_proba(TEXTS), expected)


def edited(**changes: object) -> Callable[[Path], object]:
    def edit(run: Path) -> None:
        content = json.loads((run / "ensemble.json").read_text())
        (run / "ensemble.json").write_text(json.dumps({**content, **changes}))

    return edit


def other_weights(run: Path) -> None:
    weights = [run.parent / f"run-{i}" / "classifier" / "model.safetensors" for i in range(2)]
    shutil.copyfile(weights[0], weights[1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run: shutil.rmtree(run.parent / "run-1"),
            "run-1: no classifier model here, but .*run is an ensemble with it",
        ),
        (other_weights, "run-1/classifier is not the classifier that .*run was made of: start run --both-directions again"),
        (lambda run: shutil.rmtree(run / "linear"), "the linear model is missing or damaged"),
        (lambda run: (run / "ensemble.json").write_text("{"), "ensemble.json: missing or damaged"),
        (lambda run: (run / "ensemble.json").write_text("[1]"), "ensemble.json: missing or damaged"),
        (edited(format=9), "format 9, but this version reads 1"),
        (edited(members=[]), "0 members"),
        (edited(kind="others"), "unknown kind"),
        (edited(members=[{"run": 3, "digest": "", "temperature": 1.0}]), "a member has an invalid value"),
        (edited(members=[{"run": "../run-0", "digest": "", "temperature": -1.0}]), "a member has an invalid value"),
        (edited(members=[{"run": "../run-0", "colour": ""}]), "ensemble.json: missing or damaged"),
    ],
)
def test_what_is_not_the_ensemble_is_one_line(damage: Callable[[Path], object], message: str, run: Path):
    damage(run)
    with pytest.raises(UserError, match=message):
        load_classifier(run)


def test_a_linear_model_of_other_tokens_is_refused(run: Path):
    settings = json.loads((run / "linear" / "linear.json").read_text())
    (run / "linear" / "linear.json").write_text(json.dumps({**settings, "vocab": "other"}))
    with pytest.raises(UserError, match=r"a linear model of other tokens than those of .*run-0"):
        load_classifier(run)


def test_where_one_model_is_needed_the_members_are_named(run: Path):
    for words in (["export", run, "--to", "onnx"], ["generate", run, "a"], ["ensemble", run, run.parent / "run-0"]):
        result = command_here(words)
        assert result.returncode == 2
        assert (
            f"{run} is an ensemble, which has no model of its own: name one of its members, {run}-0, {run}-1"
            in result.stderr
        )


def test_the_file_is_what_was_written(run: Path):
    file = read_ensemble(run)
    before = (run / "ensemble.json").read_bytes()
    file.write(run)
    assert (run / "ensemble.json").read_bytes() == before
    assert file.members[0].linear_temperature == 0.5
