"""Metrics of resampled documents: against scikit-learn on the documents themselves, repeated as often as they are drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, mean_squared_error, r2_score

from ulmfit_dist.metrics.resampling import NUM_RESAMPLES, Sample, decide, interval, sample_of

N, C = 12, 4
TIMES_N = np.array([0, 3, 1, 1, 0, 2, 1, 0, 1, 1, 2, 0])
"""A draw: how often each of twelve documents is drawn."""
LABEL_N = np.array([0, 0, 1, 1, 2, 2, 0, 1, 2, 0, 1, 2])
PREDICTED_N = np.array([0, 1, 1, 1, 0, 2, 0, 2, 2, 0, 1, 1])
OTHER_N = np.array([0, 0, 1, 2, 2, 2, 1, 1, 2, 0, 0, 0])
"""Predictions of a second classifier. The fourth class neither occurs nor is predicted."""


def one_hot(classes_N: np.ndarray) -> np.ndarray:
    return np.eye(C)[classes_N]


def of_documents(sample: Sample, times_N: np.ndarray) -> list[dict[str, float]]:
    """Return the metrics of a sample whose items are documents, each taken some times."""
    return [{name: float(value[0]) for name, value in values.items()} for values in sample.metrics(times_N[np.newaxis])]


def test_accuracy_and_f1_of_both_classifiers_are_sklearns():
    sample = sample_of([one_hot(PREDICTED_N), one_hot(OTHER_N)], LABEL_N, "category", (0.5, 0.5))
    assert sample.counts.sum() == N
    for actual, predicted_N in zip(sample.exact(), (PREDICTED_N, OTHER_N), strict=True):
        assert actual == pytest.approx(
            {"accuracy": accuracy_score(LABEL_N, predicted_N), "f1_macro": f1_score(LABEL_N, predicted_N, average="macro")}
        )


def test_drawn_cells_count_as_their_documents():
    """Cells are sorted by true class, then by the predictions."""
    label_N, predicted_N = np.array([2, 0, 2, 2]), np.array([2, 1, 0, 2])
    sample = sample_of([one_hot(predicted_N)], label_N, "category", (0.5,))
    assert sample.counts.tolist() == [1, 1, 2]  # (0, 1), (2, 0), (2, 2)
    drawn_RK = np.array([[1, 0, 3], [0, 4, 0], [2, 1, 1]])
    (values,) = sample.metrics(drawn_RK)
    for drawn_K, accuracy, f1 in zip(drawn_RK, values["accuracy"], values["f1_macro"], strict=True):
        y, predicted = np.repeat([0, 2, 2], drawn_K), np.repeat([1, 0, 2], drawn_K)
        assert accuracy == pytest.approx(accuracy_score(y, predicted))
        assert f1 == pytest.approx(f1_score(y, predicted, average="macro", zero_division=0))


def test_metrics_of_several_classes_are_sklearns():
    rng = np.random.default_rng(0)
    true_NC, probability_NC = rng.random((N, C)) < 0.4, rng.random((N, C))
    true_NC[:, 3], probability_NC[:, 3] = False, 0.1  # a class that neither occurs nor is predicted
    sample = sample_of([probability_NC, probability_NC], true_NC, "multicategory", (0.3, 0.6))
    for times_N in (np.ones(N, dtype=int), TIMES_N):
        y_NC = np.repeat(true_NC, times_N, axis=0)
        for actual, threshold in zip(of_documents(sample, times_N), (0.3, 0.6), strict=True):
            predicted_NC = np.repeat(probability_NC > threshold, times_N, axis=0)
            assert actual == pytest.approx(
                {
                    "accuracy": (y_NC == predicted_NC).mean(),
                    "f1_macro": f1_score(y_NC[:, :3], predicted_NC[:, :3], average="macro"),
                    "f1_micro": f1_score(y_NC, predicted_NC, average="micro"),
                    "exact_match": accuracy_score(y_NC, predicted_NC),
                }
            )
    assert sample.exact() == of_documents(sample, np.ones(N))


def test_nothing_that_occurs_or_is_predicted_has_an_f1_of_zero():
    nothing_NC = np.zeros((3, C))
    (actual,) = sample_of([nothing_NC], nothing_NC.astype(bool), "multicategory", (0.5,)).exact()
    assert actual == {"accuracy": 1, "f1_macro": 0, "f1_micro": 0, "exact_match": 1}


def test_labels_of_several_classes_may_be_numbers():
    true_NC = np.array([[1, 0, 0, 1], [0, 0, 0, 1]])
    (actual,) = sample_of([true_NC * 0.9], true_NC, "multicategory", (0.5,)).exact()
    assert actual == {"accuracy": 1, "f1_macro": 1, "f1_micro": 1, "exact_match": 1}


def test_metrics_of_numbers_are_sklearns():
    y_N, predicted_N = np.arange(N) / 3, np.arange(N)[::-1] * 0.5 - 1
    sample = sample_of([predicted_N[:, np.newaxis]], y_N, "regression", (0.5,))
    for times_N in (np.ones(N, dtype=int), TIMES_N):
        y, predicted = np.repeat(y_N, times_N), np.repeat(predicted_N, times_N)
        (actual,) = of_documents(sample, times_N)
        assert actual == pytest.approx(
            {
                "rmse": math.sqrt(mean_squared_error(y, predicted)),
                "mae": mean_absolute_error(y, predicted),
                "r2": r2_score(y, predicted),
            }
        )


def test_equal_numbers_have_no_r2_and_whole_ones_are_not_rounded():
    (actual,) = sample_of([np.array([[1], [3]])], np.array([2, 2]), "regression", (0.5,)).exact()
    assert (actual["rmse"], actual["mae"]) == (1, 1)
    assert math.isnan(actual["r2"])


def test_each_resample_has_as_many_documents_as_the_sample():
    drawn = []

    def metrics(drawn_RK: np.ndarray) -> list[dict[str, np.ndarray]]:
        drawn.append(drawn_RK)
        return [{"first item": drawn_RK[:, 0]}, {"last item": drawn_RK[:, -1]}]

    counts_K = np.array([6, 0, 3, 1])
    first, last = Sample(counts_K, metrics).resampled(np.random.default_rng(0))
    all_RK = np.concatenate(drawn)
    assert len(all_RK) == NUM_RESAMPLES
    assert set(all_RK.sum(1)) == {10}
    assert all_RK.mean(0) == pytest.approx(counts_K, abs=0.2)
    assert first["first item"].tolist() == all_RK[:, 0].tolist()
    assert last["last item"].tolist() == all_RK[:, 3].tolist()


def test_the_interval_is_the_middle_95_percent_of_the_values_that_are_defined():
    values_R = np.array([*range(201), np.nan])[::-1]
    assert interval(values_R) == [5, 195]


def test_a_class_is_predicted_above_the_threshold_not_at_it():
    answers_NC = np.array([[0.5, 0.6], [0.7, 0.2]])
    assert decide(answers_NC, "multicategory", 0.5).tolist() == [[False, True], [True, False]]
    assert decide(answers_NC, "category", 0.5).tolist() == [1, 0]
