"""Teacher of a self-training: the mean of its members on the unlabelled documents, and voters that do not fit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from made_classifiers import CONFIG, lettered_store, make_classifier

from ulmfit_dist.config.schema import Config, RuntimeConfig, SelfTrainingConfig
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.answers import compute_answers
from ulmfit_dist.inference.temperature import LOG_DEVIATION, fit_temperature, scale_answers
from ulmfit_dist.models.bundle import read_bundle
from ulmfit_dist.stages import teacher
from ulmfit_dist.stages.baseline import baseline_answers
from ulmfit_dist.stages.teacher import draw_documents, identity_of, make_pseudo_labels, read_teacher, unlabelled_documents

VALID, UNLABELLED = np.arange(30, 50), np.arange(50, 75)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Runtime(RuntimeConfig(precision="fp32"))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenStore:
    store = lettered_store(tmp_path / "store")
    store.meta["splits"] = {"train": [0, 30], "valid": [30, 50], "unlabelled": [50, 75], "test": [75, 80]}
    store.labels[UNLABELLED] = NO_LABEL
    monkeypatch.setattr(teacher, "prepare", lambda config, runtime: store)
    return store


@pytest.fixture
def runs(tmp_path: Path, store: TokenStore) -> list[Path]:
    backwards = replace(CONFIG, model=replace(CONFIG.model, backwards=True))
    return [make_classifier(tmp_path / f"run{i}", store, i, config) for i, config in enumerate([CONFIG, backwards])]


def config_of(**settings) -> Config:
    return replace(CONFIG, self_training=SelfTrainingConfig(shares=[1.0], **settings))


def mean_answers(answers: list[dict[str, torch.Tensor]], store: TokenStore) -> torch.Tensor:
    """Return the mean of the members on the unlabelled documents, at their temperatures."""
    y = torch.from_numpy(store.labels[VALID].astype(np.int64))
    temperatures = [fit_temperature(part["valid"], y, "category", LOG_DEVIATION) for part in answers]
    scaled = [scale_answers(part["unlabelled"], t, "category") for part, t in zip(answers, temperatures, strict=True)]
    return torch.stack(scaled).mean(0)


@pytest.mark.parametrize("kind", ["classifier", "mean", "baseline"])
def test_labels_are_those_of_the_mean_of_its_members(kind: str, runs: list[Path], store: TokenStore, runtime: Runtime):
    config = config_of(teacher=kind, voters=[str(runs[1])])
    members = read_teacher(config, runs[0], runtime)
    assert [member.folder for member in members] == [
        run / "classifier" for run in (runs[1:] if kind == "baseline" else runs)
    ]
    sides = {"valid": VALID, "unlabelled": UNLABELLED}
    answers = [{side: compute_answers(member, store, part, runtime) for side, part in sides.items()} for member in members]
    if kind != "classifier":
        linear = baseline_answers(config, runtime, store, {"unlabelled": UNLABELLED})[2]
        answers.append({side: torch.from_numpy(part) for side, part in linear.items()})
    mean_NC = mean_answers(answers, store).numpy()
    actual = make_pseudo_labels(members, config, 1, runtime, store)
    assert len(actual.documents) > 5
    rows = actual.documents - UNLABELLED[0]
    assert actual.names == [store.label_names[c] for c in mean_NC[rows].argmax(1)]
    np.testing.assert_allclose(actual.confidences, mean_NC[rows].max(1), atol=1e-6)
    assert len(actual.metadata["temperatures"]) == len(answers)
    assert {key: actual.metadata[key] for key in identity_of(members, config, store)} == identity_of(members, config, store)
    assert max(actual.counts().values()) <= 25 / 3 + 1


def test_labels_that_documents_had_are_not_read(runs: list[Path], store: TokenStore, runtime: Runtime):
    expected = make_pseudo_labels(read_teacher(config_of(), runs[0], runtime), config_of(), 1, runtime, store)
    store.labels[[*UNLABELLED, *range(75, 80)]] = 1  # the source may have labels in an unlabelled split; and of test
    actual = make_pseudo_labels(read_teacher(config_of(), runs[0], runtime), config_of(), 1, runtime, store)
    assert (actual.digest, actual.confidences.tolist()) == (expected.digest, expected.confidences.tolist())


def test_a_round_scores_its_own_draw_of_the_documents(runs: list[Path], store: TokenStore, runtime: Runtime):
    config = config_of(teacher="classifier", scored_documents=12)
    members = read_teacher(config, runs[0], runtime)
    draws = [draw_documents(UNLABELLED, config, number) for number in (1, 2, 1)]
    assert all(len(draw) == 12 and set(draw) <= set(UNLABELLED) and np.all(np.diff(draw) > 0) for draw in draws)
    assert draws[0].tolist() == draws[2].tolist() != draws[1].tolist()
    assert draw_documents(UNLABELLED, replace(config, seed=9), 1).tolist() != draws[0].tolist()
    assert draw_documents(UNLABELLED, config_of(scored_documents=25), 1).tolist() == UNLABELLED.tolist()
    labels = make_pseudo_labels(members, config, 2, runtime, store)
    assert len(labels.documents)
    assert set(labels.documents) <= set(draws[1])
    everything = compute_answers(members[0], store, UNLABELLED, runtime).numpy()
    assert labels.names == [store.label_names[c] for c in everything[labels.documents - UNLABELLED[0]].argmax(1)]


def test_another_model_or_another_choice_is_another_identity(runs: list[Path], store: TokenStore):
    first, second = (read_bundle(run / "classifier") for run in runs)
    expected = identity_of([first], config_of(), store)
    assert expected == identity_of([first], config_of(rounds=9, labelled_share=0.3), store)
    assert expected != identity_of([second], config_of(), store)
    assert expected != identity_of([first], config_of(error_ratio=0.4), store)
    assert expected != identity_of([first], config_of(scored_documents=12), store)


def test_voters_must_have_the_same_labels_texts_and_valid_documents(
    runs: list[Path], store: TokenStore, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = make_classifier(tmp_path / "other", store, 3)
    (other / "classifier" / "labels.json").write_text('["a", "b", "d"]')
    with pytest.raises(UserError, match="other/classifier has other labels"):
        read_teacher(config_of(voters=[str(other)]), runs[0], runtime)
    with pytest.raises(UserError, match="nowhere: no classifier model here"):
        read_teacher(config_of(voters=["nowhere"]), runs[0], runtime)
    arch = replace(CONFIG, data=replace(CONFIG.data, get_y="mine.label"))
    make_classifier(other, store, 3, arch)
    with pytest.raises(UserError, match=r"mine\.label.*--trust-remote-code"):
        read_teacher(config_of(voters=[str(other)]), runs[0], runtime)
    store.meta["splits"] = {"train": [0, 50], "unlabelled": [50, 75]}
    make_classifier(other, store, 3, replace(CONFIG, seed=1))
    with pytest.raises(UserError, match="other/classifier was validated on other documents than"):
        read_teacher(config_of(voters=[str(other)]), runs[0], runtime)


def test_texts_of_valid_or_test_are_named_or_refused(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    store.text_hashes = store.text_hashes.copy()
    store.text_hashes[[50, 51]] = store.text_hashes[[30, 76]]
    message = "2 unlabelled documents have the text of a valid or test document"
    assert len(unlabelled_documents(store, CONFIG)) == 25
    assert f"{message}: data.on_duplicates=drop leaves them out" in capsys.readouterr().err
    assert len(unlabelled_documents(store, replace(CONFIG, data=replace(CONFIG.data, on_duplicates="drop")))) == 23
    store.meta["splits"]["unlabelled"] = [50, 50]
    with pytest.raises(UserError, match="no document without a label to train on"):
        unlabelled_documents(store, CONFIG)
