"""Voters of an ensemble: the linear model votes only if valid shows that it helps, and no test label is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from made_classifiers import CLASSES, CONFIG, lettered_store

from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.inference.temperature import fit_temperature
from ulmfit_dist.stages.evaluate_ensemble import Answers
from ulmfit_dist.stages.voters import (
    LINEAR,
    Documents,
    compared_combinations,
    is_gain,
    losses,
    make_voters,
    mean_of,
    select_voters,
    standard_error,
)


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Runtime(RuntimeConfig(precision="fp32"))
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return lettered_store(tmp_path / "store")


def answers_to(
    store: TokenStore, documents_N: np.ndarray, right: float, seed: int, wrong_share: float = 0.0
) -> torch.Tensor:
    """Answers that give the true class this probability, and to a share of the documents another class."""
    rng = np.random.default_rng(seed)
    is_wrong_N = rng.random(len(documents_N)) < wrong_share
    classes_N = (store.labels[documents_N] + is_wrong_N) % CLASSES
    answers_NC = np.full((len(documents_N), CLASSES), (1 - right) / (CLASSES - 1))
    answers_NC[np.arange(len(documents_N)), classes_N] = right
    return torch.from_numpy(answers_NC)


def choose(store: TokenStore, runtime: Runtime, count: int, right: float, wrong_share: float = 0.0) -> tuple[bool, dict]:
    """Let a linear model vote beside two classifiers that are right with 0.6."""
    valid_N, test_N = np.arange(count), np.arange(60, 80)
    documents = Documents("directions", ["forward", "backward"], CONFIG, [valid_N, valid_N], test_N)

    def answers(right: float, seed: int, share: float = 0.0) -> Answers:
        return {side: answers_to(store, part, right, seed, share) for side, part in documents.sides.items()}

    voters = make_voters(documents, [answers(0.6, 0), answers(0.6, 1)], [answers(right, 2, wrong_share)])
    assert list(voters) == ["forward", "backward", LINEAR]
    return select_voters(documents, voters, store, runtime)


def test_a_linear_model_votes_if_it_lowers_the_loss(store: TokenStore, runtime: Runtime):
    votes, selection = choose(store, runtime, 60, 0.9)
    assert votes
    before, after = (selection["combinations"][name] for name in ("forward + backward", "forward + backward + linear"))
    assert selection["gain"] == pytest.approx(before["valid_loss"] - after["valid_loss"], rel=1e-5)
    assert len(selection["combinations"]) == 7
    assert not choose(store, runtime, 60, 0.4)[0]


def test_an_uncertain_gain_is_no_vote(store: TokenStore, runtime: Runtime):
    for count, expected in ((6, False), (60, True)):  # the same kind of gain, of few documents and of many
        votes, selection = choose(store, runtime, count, 0.95, wrong_share=0.25)
        assert votes is expected, selection
    assert not choose(store, runtime, 1, 0.9)[0]  # of one document the error is unknown
    assert choose(store, runtime, 1, 0.9)[1]["standard_error"] is None
    assert [is_gain(gain, 0.1) for gain in (0.2, 0.1, 0.05, -0.2)] == [True, True, False, False]
    assert not is_gain(0.0, 0.0)
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)


def test_labels_of_test_change_no_choice(store: TokenStore, runtime: Runtime):
    before = choose(store, runtime, 40, 0.8)
    store.labels[60:] = (store.labels[60:] + 1) % CLASSES
    assert choose(store, runtime, 40, 0.8) == before


def test_the_combinations_of_many_voters_are_few():
    assert compared_combinations(["a", "b", LINEAR]) == [
        ("a",), ("b",), (LINEAR,), ("a", "b"), ("a", LINEAR), ("b", LINEAR), ("a", "b", LINEAR)
    ]  # fmt: skip
    names = [f"run-{i}" for i in range(12)]
    single = [(name,) for name in names]
    assert compared_combinations(names) == [*single, tuple(names)]
    assert compared_combinations([*names, LINEAR]) == [*single, (LINEAR,), tuple(names), (*names, LINEAR)]


def test_a_document_of_a_fold_has_the_answer_of_the_model_that_has_not_read_it():
    folds = [np.array([3, 8, 9]), np.array([1, 4])]
    config = replace(CONFIG, data=replace(CONFIG.data, folds=2))
    documents = Documents("folds", ["cv-fold-0", "cv-fold-1"], config, folds, np.array([20, 21]))
    classifiers = [
        {"valid": torch.full((len(fold_N), 2), float(number)), "test": torch.full((2, 2), float(number))}
        for number, fold_N in enumerate(folds)
    ]
    voters = make_voters(documents, classifiers, [])
    np.testing.assert_array_equal(documents.sides["valid"], [1, 3, 4, 8, 9])
    assert voters["classifiers"]["valid"][:, 0].tolist() == [1, 0, 1, 0, 0]
    assert voters["classifiers"]["test"][:, 0].tolist() == [0.5, 0.5]
    with_linear = make_voters(documents, classifiers, classifiers)
    assert mean_of(with_linear)["valid"][:, 1].tolist() == [1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("target", "answers", "y", "expected"),
    [
        ("category", [[0.2, 0.8], [1.0, 0.0]], torch.tensor([1, 1]), [-np.log(0.8), -np.log(1e-15)]),
        ("multicategory", [[0.2, 0.8]], torch.tensor([[0.0, 1.0]]), [-np.log(0.8)]),
        ("regression", [[2.0], [5.0]], torch.tensor([1.0, 5.0]), [1.0, 0.0]),
    ],
)
def test_losses_are_of_each_document(target: str, answers: list, y: torch.Tensor, expected: list[float]):
    np.testing.assert_allclose(losses(torch.tensor(answers).double(), y, target), expected)


def test_a_few_right_answers_do_not_become_certain():
    """Without a prior, the temperature of documents that are all right is the lowest of the range."""
    p_NC, y_N = torch.tensor([[0.7, 0.3]] * 5).double(), torch.zeros(5, dtype=torch.int64)
    assert fit_temperature(p_NC, y_N, "category") == 0.05
    few, many = (fit_temperature(p_NC.repeat(n, 1), y_N.repeat(n), "category", 1.0) for n in (1, 200))
    assert 0.3 < few < 1
    assert many < few


def test_a_temperature_does_not_depend_on_rounding():
    rng = np.random.default_rng(0)
    p_NC = torch.from_numpy(rng.dirichlet(np.ones(4), 300))
    y_N = torch.from_numpy(rng.integers(0, 4, 300))
    expected = fit_temperature(p_NC, y_N, "category")
    assert fit_temperature(p_NC * (1 + 1e-13), y_N, "category") == pytest.approx(expected, rel=1e-10)
