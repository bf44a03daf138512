"""Bootstrap intervals: against resampling of the documents, and their coverage."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from ulmfit_dist.config.schema import ClassifierConfig
from ulmfit_dist.metrics.intervals import metric_intervals


def answers(rng: np.random.Generator, y_N: np.ndarray, right: float, classes: int) -> np.ndarray:
    said_N = np.where(rng.random(len(y_N)) < right, y_N, rng.integers(0, classes, len(y_N)))
    return np.eye(classes)[said_N]


def drawn(rng: np.random.Generator, number: int, metric) -> list[float]:
    values = [metric(rng.integers(0, number, number)) for _ in range(1000)]
    return np.percentile(values, [2.5, 97.5]).tolist()


def test_intervals_are_those_of_drawing_documents():
    rng = np.random.default_rng(0)
    y_N = rng.integers(0, 4, 300)
    answers_NC = answers(rng, y_N, 0.7, 4)
    said_N = answers_NC.argmax(1)
    actual = metric_intervals(answers_NC, y_N, ClassifierConfig(), seed=1)
    expected = {
        "accuracy": drawn(rng, 300, lambda rows: (said_N == y_N)[rows].mean()),
        "f1_macro": drawn(rng, 300, lambda rows: f1_score(y_N[rows], said_N[rows], average="macro")),
    }
    assert actual.keys() == expected.keys()
    for name, interval in expected.items():
        assert actual[name] == pytest.approx(interval, abs=0.012)
    assert actual == metric_intervals(answers_NC, y_N, ClassifierConfig(), seed=1)
    assert actual != metric_intervals(answers_NC, y_N, ClassifierConfig(), seed=2)


def test_intervals_of_several_classes_and_of_numbers():
    rng = np.random.default_rng(0)
    y_NC = rng.random((200, 3)) < 0.4
    probabilities_NC = np.clip(y_NC * 0.5 + rng.random((200, 3)) * 0.6, 0, 1)
    actual = metric_intervals(probabilities_NC, y_NC, ClassifierConfig(target="multicategory"), seed=1)
    said_NC = probabilities_NC > 0.5
    assert actual["accuracy"] == pytest.approx(drawn(rng, 200, lambda rows: (said_NC == y_NC)[rows].mean()), abs=0.015)
    f1 = drawn(rng, 200, lambda rows: f1_score(y_NC[rows], said_NC[rows], average="micro"))
    assert actual["f1_micro"] == pytest.approx(f1, abs=0.015)
    numbers_N = rng.normal(size=200)
    given_N1 = numbers_N[:, None] + rng.normal(size=(200, 1)) * 0.5
    actual = metric_intervals(given_N1, numbers_N, ClassifierConfig(target="regression"), seed=1)
    error_N = given_N1[:, 0] - numbers_N
    assert actual["rmse"] == pytest.approx(drawn(rng, 200, lambda rows: np.sqrt((error_N[rows] ** 2).mean())), abs=0.015)
    r2 = drawn(rng, 200, lambda rows: 1 - (error_N[rows] ** 2).mean() / numbers_N[rows].var())
    assert actual["r2"] == pytest.approx(r2, abs=0.02)


def test_the_interval_of_accuracy_holds_the_true_one_nine_times_in_ten_at_least():
    rng, held = np.random.default_rng(0), 0
    for seed in range(100):
        y_N = rng.integers(0, 2, 150)
        said_N = np.where(rng.random(150) < 0.8, y_N, 1 - y_N)
        low, high = metric_intervals(np.eye(2)[said_N], y_N, ClassifierConfig(), seed)["accuracy"]
        held += low <= 0.8 <= high
    assert 89 <= held <= 100


def test_an_interval_stays_the_same_from_version_to_version():
    """A report that is written again has the same figures."""
    numbers_N = np.arange(12.0)
    answers_N1 = (numbers_N + np.sqrt(np.arange(12)))[:, np.newaxis]
    regression = ClassifierConfig(target="regression")
    actual = [metric_intervals(answers_N1, numbers_N, regression, seed)["mae"] for seed in (1, 2)]
    assert actual == [pytest.approx([1.601094, 2.650529]), pytest.approx([1.600843, 2.621892])]
