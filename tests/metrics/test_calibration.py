"""Scores per class and calibration, against manual values and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, precision_recall_fscore_support

from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.accumulators import ClassifierMetrics
from ulmfit_dist.metrics.calibration import NUM_BINS, class_scores, expected_calibration_error, reliability

CLASSES = 4


def measured(probability_NC: torch.Tensor, label_N: torch.Tensor) -> ClassifierMetrics:
    """Return metrics of documents, added in two parts."""
    metrics = ClassifierMetrics(probability_NC.shape[1])
    metrics.reset(torch.device("cpu"))
    for part in (slice(None, 7), slice(7, None)):
        metrics.add(probability_NC[part].log(), label_N[part])
    metrics.compute(Runtime(RuntimeConfig(precision="fp32")))
    return metrics


@pytest.fixture
def documents() -> tuple[torch.Tensor, torch.Tensor]:
    """Return probabilities of 500 documents and likely true labels; the last class does not occur."""
    generator = torch.Generator().manual_seed(0)
    logits_NC = 2 * torch.randn(500, CLASSES, dtype=torch.float64, generator=generator)
    label_N = torch.multinomial(logits_NC[:, :-1].mul(0.5).softmax(1), 1, generator=generator)[:, 0]
    return logits_NC.softmax(1), label_N


def test_a_class_is_scored_by_its_row_and_its_column():
    confusion = np.array([[3.0, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert [tuple(scores) for scores in class_scores("abc", confusion)] == [
        ("a", 1, 3 / 4, 6 / 7, 4),
        ("b", 2 / 3, 1, 4 / 5, 2),
        ("c", None, None, None, 0),  # nothing is of it, and nothing was taken for it
    ]


def test_scores_of_classes_are_sklearns(documents: tuple[torch.Tensor, torch.Tensor]):
    probability_NC, label_N = documents
    actual = class_scores("abcd", measured(probability_NC, label_N).confusion_CC.numpy())
    expected = precision_recall_fscore_support(
        label_N, probability_NC.argmax(1), labels=range(CLASSES), zero_division=np.nan
    )
    columns = zip(*(scores[1:] for scores in actual), strict=True)
    for column, sklearns in zip(columns, expected, strict=True):
        np.testing.assert_allclose(np.array(column, dtype=float), sklearns)


def test_calibration_by_hand():
    """Two documents with confidence 0.9, one of them correct; two with 0.6, both correct."""
    confidences, is_right = [0.9, 0.9, 0.6, 0.6], [True, False, True, True]
    probability_NC = torch.tensor([[p, 1 - p] for p in confidences], dtype=torch.float64)
    bins_K3 = measured(probability_NC, torch.tensor([0 if right else 1 for right in is_right])).bins_K3.numpy()
    unsure, sure = reliability(bins_K3)
    assert tuple(unsure) == pytest.approx((8 / 15, 9 / 15, 2, 0.6, 1))
    assert tuple(sure) == pytest.approx((13 / 15, 14 / 15, 2, 0.9, 0.5))
    assert expected_calibration_error(bins_K3) == pytest.approx(0.5 * 0.4 + 0.5 * 0.4)


@pytest.mark.parametrize(("confidence", "number"), [(0.5, 7), (0.6, 8), (0.601, 9), (1.0, 14)])
def test_a_bin_holds_its_upper_edge(confidence: float, number: int):
    probability_NC = torch.tensor([[confidence, 1 - confidence]], dtype=torch.float64)
    count_K = measured(probability_NC, torch.tensor([0])).bins_K3[:, 0]
    assert count_K.nonzero().flatten().tolist() == [number]


def test_calibration_and_brier_score_are_sklearns(documents: tuple[torch.Tensor, torch.Tensor]):
    probability_NC, label_N = documents
    metrics = measured(probability_NC, label_N)
    confidence_N, guessed_N = probability_NC.max(1)
    accuracies, confidences = calibration_curve(guessed_N == label_N, confidence_N, n_bins=NUM_BINS)
    table = reliability(metrics.bins_K3.numpy())
    np.testing.assert_allclose([entry.accuracy for entry in table], accuracies)
    np.testing.assert_allclose([entry.confidence for entry in table], confidences)
    assert sum(entry.documents for entry in table) == len(label_N)
    expected = brier_score_loss(label_N, probability_NC, labels=range(CLASSES), scale_by_half=False)
    assert metrics.brier_score == pytest.approx(expected)
