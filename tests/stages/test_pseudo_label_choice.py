"""Choice of pseudo-labels: class balance, the error on valid, few valid documents, ties."""

import dataclasses

import numpy as np
import pytest

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import SelfTrainingConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.pseudo_label_choice import PRIOR, RatedAnswers, choose, rate_answers, take_share

SETTINGS = SelfTrainingConfig()
EQUAL_2 = np.array([10, 10])


def rated(classes: list[int], probabilities: list[float]) -> RatedAnswers:
    """Return the answers of two classes, given the probability of the predicted one."""
    p_N = np.array(probabilities)
    answers_N2 = np.stack([np.where(np.array(classes) == c, p_N, 1 - p_N) for c in range(2)], axis=1)
    return rate_answers(answers_N2)


def graded(number: int, seed: int = 0) -> RatedAnswers:
    """Return answers of two classes in turn, from 0.51 to 0.99."""
    p_N = np.random.default_rng(seed).permutation(np.linspace(0.51, 0.99, number))
    return rated([i % 2 for i in range(number)], p_N.tolist())


def test_confidence_orders_answers_whose_probability_rounds_to_one():
    tails = np.array([1e-9, 1e-12, 1e-15])
    log_odds_N = rate_answers(np.stack([1 - tails, tails], axis=1)).log_odds
    assert np.all(np.diff(log_odds_N) > 1)
    assert np.isfinite(rate_answers(np.array([[1.0, 0.0]])).log_odds).all()


def test_rounding_in_the_last_digits_changes_nothing():
    rng = np.random.default_rng(1)
    answers_NC = rng.dirichlet(np.ones(3), 400)
    answers_NC[:20] = answers_NC[0]
    answers_NC[20:30] = [0.4, 0.4, 0.2]  # two classes are as probable
    noisy_NC = answers_NC * (1 + 1e-14 * rng.standard_normal(answers_NC.shape))
    expected, actual = rate_answers(answers_NC), rate_answers(noisy_NC)
    assert np.array_equal(actual.classes, expected.classes)
    assert (actual.classes[20:30] == 0).all()
    for share in SETTINGS.shares:
        rows = [take_share(part, share, np.array([5, 3, 2]))[0].tolist() for part in (expected, actual)]
        assert rows[0] == rows[1]


def test_equal_confidences_are_taken_in_the_order_of_the_documents():
    p_N = np.random.default_rng(2).choice([0.6, 0.7, 0.8, 0.9], 400)
    unlabelled = rated([0, 1] * 200, p_N.tolist())
    rows, lowest_C = take_share(unlabelled, 0.4, EQUAL_2)
    ranked = sorted(range(400), key=lambda row: (row % 2, -p_N[row], row))
    assert rows.tolist() == sorted([*ranked[:80], *ranked[200:280]])
    assert lowest_C == pytest.approx(np.log([4, 4]), abs=1e-6)


def test_the_most_confident_of_each_class_are_taken_in_the_shares_of_the_labelled_documents():
    unlabelled = graded(200)
    rows, lowest_C = take_share(unlabelled, 0.5, np.array([30, 10]))
    classes = unlabelled.classes[rows]
    assert np.bincount(classes).tolist() == [50, 25]  # 75 are the first class's part, but only half of its 100 are confident
    for c in range(2):
        left_out = np.setdiff1d(np.flatnonzero(unlabelled.classes == c), rows)
        assert unlabelled.log_odds[rows[classes == c]].min() == lowest_C[c] >= unlabelled.log_odds[left_out].max()


def test_a_class_that_the_teacher_prefers_is_cut_and_one_without_labels_gets_none():
    skewed = rated([0] * 90 + [1] * 10, np.linspace(0.6, 0.9, 100).tolist())
    assert np.bincount(skewed.classes[take_share(skewed, 1.0, EQUAL_2)[0]]).tolist() == [50, 10]
    rows, lowest_C = take_share(skewed, 1.0, np.array([7, 0]))
    assert np.bincount(skewed.classes[rows], minlength=2).tolist() == [90, 0]
    assert lowest_C[1] == np.inf


def test_the_number_is_limited_and_no_document_is_an_empty_choice():
    unlabelled = graded(100)
    assert np.bincount(unlabelled.classes[take_share(unlabelled, 1.0, EQUAL_2, 20)[0]]).tolist() == [10, 10]
    rows, lowest_C = take_share(unlabelled, 0.5, EQUAL_2, 6)
    for c in range(2):  # the first, the middle and the last of the most confident 25
        order = sorted(np.flatnonzero(unlabelled.classes == c), key=lambda row: -unlabelled.log_odds[row])
        assert sorted(rows[unlabelled.classes[rows] == c]) == sorted(order[i] for i in (0, 12, 24))
        assert lowest_C[c] == unlabelled.log_odds[order[24]]
    rows, lowest_C = take_share(rated([], []), 1.0, EQUAL_2)
    assert rows.dtype == np.int64
    assert len(rows) == 0
    assert lowest_C.tolist() == [np.inf, np.inf]


def valid_of(wrong_below: float, number: int = 100) -> tuple[RatedAnswers, np.ndarray]:
    """Return valid answers from 0.51 to 0.99, and true classes: those below a probability are all wrong."""
    valid = rated([i % 2 for i in range(number)], np.linspace(0.51, 0.99, number).tolist())
    return valid, np.where(valid.probabilities < wrong_below, 1 - valid.classes, valid.classes)


def test_the_largest_share_with_a_low_error_is_chosen():
    valid, y_M = valid_of(wrong_below=0.71)
    whole_error = ((valid.classes != y_M).sum() + 1) / 102
    assert whole_error > 0.4
    choice = choose(graded(1000), valid, y_M, EQUAL_2, SETTINGS)
    assert choice.share == 0.5
    assert choice.num_errors == 0
    assert choice.num_valid == pytest.approx(50, abs=2)
    assert choice.error == pytest.approx(PRIOR * whole_error / (choice.num_valid + PRIOR))
    assert choice.error <= choice.limit == pytest.approx(whole_error / 2)
    assert len(choice.rows) == pytest.approx(500, abs=2)
    assert choice.confidences == pytest.approx([0.75, 0.75], abs=0.01)
    line = choice.describe(1000)
    assert line.startswith(
        "500 of 1,000 unlabelled documents, the most confident 50%: the largest share with an error on valid"
    )
    strict = dataclasses.replace(SETTINGS, error_ratio=0.01, accepted_error=0.0)
    best = choose(graded(1000), valid, y_M, EQUAL_2, strict)
    assert best.share == 0.5
    assert "the best share, but not one with" in best.describe(1000)
    assert choose(graded(1000), valid, y_M, EQUAL_2, dataclasses.replace(SETTINGS, error_ratio=1.1)).share == 1.0


def test_a_share_of_low_error_is_accepted_whatever_the_error_of_all_is():
    valid, y_M = valid_of(wrong_below=0.53)
    assert choose(graded(1000), valid, y_M, EQUAL_2, SETTINGS).share == 1.0
    strict = dataclasses.replace(SETTINGS, accepted_error=0.0)
    assert choose(graded(1000), valid, y_M, EQUAL_2, strict).share < 1.0


@pytest.mark.parametrize("number", [4, 20])
def test_few_valid_documents_without_an_error_do_not_promise_perfection(number: int):
    valid, y_M = valid_of(wrong_below=0.0, number=number)
    choice = choose(graded(100), valid, y_M, EQUAL_2, SETTINGS)
    assert choice.share == 1.0
    assert 0 < choice.error < 0.2


def test_one_right_valid_document_is_not_enough():
    """Most of 20 valid documents are wrong, and one has the confidence of the smallest share."""
    valid, y_M = valid_of(wrong_below=0.0, number=20)
    y_M[:10] = 1 - y_M[:10]
    y_M[12:20:2] = 1 - y_M[12:20:2]
    choice = choose(graded(100), valid, y_M, EQUAL_2, SETTINGS)
    assert choice.error > 0.2


def test_no_valid_document_at_a_confidence_is_the_error_of_all():
    valid, y_M = rated([0, 1] * 10, [0.6] * 20), np.array([0, 1] * 5 + [1, 0] * 5)
    settings = dataclasses.replace(SETTINGS, shares=[0.1])
    choice = choose(graded(100), valid, y_M, EQUAL_2, settings)
    assert (choice.num_valid, choice.error) == (0, pytest.approx(0.5))


def test_a_share_of_no_document_is_not_chosen():
    unlabelled, labelled_C = graded(20), np.full(20, 5)
    unlabelled = dataclasses.replace(unlabelled, classes=np.arange(20))
    valid, y_M = rated(list(range(20)), [0.9] * 20), np.roll(np.arange(20), 1)  # all wrong
    settings = dataclasses.replace(SETTINGS, shares=[0.1, 1.0])
    assert len(take_share(unlabelled, 0.1, labelled_C)[0]) == 0
    choice = choose(unlabelled, valid, y_M, labelled_C, settings)
    assert (choice.share, len(choice.rows)) == (1.0, 20)


@pytest.mark.parametrize("shares", ["[]", "[0.5, 0.25]", "[0, 0.5]", "[0.5, 1.5]", "[0.5, 0.5]"])
def test_candidate_shares_ascend_from_above_0_to_at_most_1(shares: str):
    with pytest.raises(UserError, match=r"self_training.shares=.*: give shares above 0, at most 1, in ascending order"):
        load_config(None, ["data.path=x", f"self_training.shares={shares}"])
