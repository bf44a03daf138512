"""Comparison of two classifiers: differences and significance tests of few documents, by manual values."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from ulmfit_dist.metrics.paired import MCNEMAR, WILCOXON, compare_answers

EYE = np.eye(3)


def test_a_difference_is_second_minus_first():
    y_N = np.array([0, 1, 2, 2])
    wrong, right = EYE[(y_N + 1) % 3], EYE[y_N]
    for first, second, difference in ((wrong, right, 1), (right, wrong, -1)):
        figures = compare_answers(first, second, y_N, "category")
        assert figures.num_documents == 4
        assert figures.tested == "accuracy"
        assert figures.differences.keys() == {"accuracy", "f1_macro"}
        for values in figures.differences.values():
            assert values == (max(-difference, 0), max(difference, 0), difference, difference, difference)


def test_the_interval_is_the_same_each_time_and_depends_on_the_answers_only():
    rng = np.random.default_rng(0)
    y_N = rng.integers(0, 3, 50)
    first, second = (EYE[np.where(rng.random(50) < 0.7, y_N, 0)] for _ in range(2))
    figures = compare_answers(first, second, y_N, "category")
    assert compare_answers(first, second, y_N, "category") == figures
    accuracy, swapped = (
        figures.differences["accuracy"],
        compare_answers(second, first, y_N, "category").differences["accuracy"],
    )
    assert accuracy.low < accuracy.difference < accuracy.high
    assert swapped[:3] == (accuracy.second, accuracy.first, -accuracy.difference)


def test_mcnemar_counts_documents_on_which_only_one_is_correct():
    """Five documents only for the first, one only for the second, one for both, one for none: p = 2 * (1 + 6) / 2**6."""
    y_N = np.zeros(8, dtype=int)
    first_N, second_N = np.array([0, 0, 0, 0, 0, 1, 0, 1]), np.array([1, 2, 1, 1, 1, 0, 0, 2])
    test = compare_answers(EYE[first_N], EYE[second_N], y_N, "category").test
    assert (test.name, test.first_better, test.second_better) == (MCNEMAR, 5, 1)
    assert test.p == pytest.approx(2 * 7 / 64)
    swapped = compare_answers(EYE[second_N], EYE[first_N], y_N, "category").test
    assert (swapped.first_better, swapped.second_better, swapped.p) == (1, 5, test.p)
    same = compare_answers(EYE[first_N], EYE[first_N], y_N, "category").test
    assert (same.first_better, same.second_better, same.p) == (0, 0, 1.0)


def test_a_document_of_several_classes_is_correct_if_all_are_and_each_classifier_has_its_threshold():
    y_NC = np.array([[True, False], [True, True], [False, False]])
    probability_NC = np.array([[0.5, 0.3], [0.5, 0.3], [0.1, 0.1]])
    figures = compare_answers(probability_NC, probability_NC, y_NC, "multicategory", (0.4, 0.2))
    test, exact = figures.test, figures.differences["exact_match"]
    assert figures.tested == "exact_match"
    assert (test.name, test.first_better, test.second_better) == (MCNEMAR, 1, 1)  # the first document, the second one
    assert exact[:3] == pytest.approx((2 / 3, 2 / 3, 0))
    assert compare_answers(probability_NC, probability_NC, y_NC, "multicategory").test.p == 1


def test_numbers_are_compared_by_wilcoxons_test_of_their_errors():
    y_N = np.array([1.0, -2, 3, 0, 5, -1])
    first_N = y_N + np.array([0.1, -0.2, 0.9, 0.4, 1.5, 0.3])
    second_N = y_N - np.array([0.4, -0.3, 0.2, 0.4, 0.5, -0.35])
    figures = compare_answers(first_N[:, None], second_N[:, None], y_N, "regression")
    test = figures.test
    assert figures.tested == "mae"
    assert figures.differences.keys() == {"rmse", "mae", "r2"}
    gain_N = np.array([0.1 - 0.4, 0.2 - 0.3, 0.9 - 0.2, 0, 1.5 - 0.5, 0.3 - 0.35])
    assert (test.name, test.first_better, test.second_better) == (WILCOXON, 3, 2)
    assert test.p == pytest.approx(scipy.stats.wilcoxon(gain_N[gain_N != 0]).pvalue)
    one = compare_answers(first_N[:2, None], second_N[:2, None], y_N[:2], "regression").test
    assert (one.first_better, one.second_better, one.p) == (2, 0, 0.5)
    same = compare_answers(first_N[:, None], first_N[:, None], y_N, "regression").test
    assert (same.first_better, same.second_better, same.p) == (0, 0, 1.0)
