"""Loss and metrics of each kind of targets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ulmfit_dist.config.schema import ClassifierConfig
from ulmfit_dist.data.targets import Targets
from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.accumulators import ClassifierMetrics
from ulmfit_dist.metrics.objective import (
    binary_cross_entropy,
    build_objective_loss,
    build_objective_metrics,
    sample_answers,
    squared_error,
)
from ulmfit_dist.metrics.targets import MulticategoryMetrics, RegressionMetrics

KINDS = {
    "category": (Targets("category", [*"abc"], torch.zeros(1)), ClassifierMetrics, "fastai.metrics.error_rate"),
    "multicategory": (Targets("multicategory", [*"abc"], torch.zeros(1, 3)), MulticategoryMetrics, "torch.dist"),
    "regression": (Targets("regression", [], torch.zeros(1)), RegressionMetrics, "sklearn.metrics.max_error"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_targets_has_its_metrics_with_the_user_defined_ones(kind: str):
    targets, expected, path = KINDS[kind]
    settings = ClassifierConfig(target=kind, metrics=[{"path": path, "name": "errors"}], threshold=0.3)
    metrics = build_objective_metrics(targets, settings)
    assert type(metrics) is expected
    assert [metric.name for metric in metrics.user_metrics.metrics] == ["errors"]
    assert build_objective_metrics(targets, settings, trust=False).user_metrics.metrics == []
    if kind != "regression":
        assert metrics.num_classes == 3
    if kind == "multicategory":
        assert metrics.threshold == 0.3


def test_a_user_defined_metric_that_fails_is_named_before_training():
    settings = ClassifierConfig(metrics=["sklearn.metrics.no_such"])
    with pytest.raises(UserError, match=r"classifier\.metrics"):
        build_objective_metrics(KINDS["category"][0], settings)
    assert build_objective_metrics(KINDS["category"][0], settings, trust=False).user_metrics.metrics == []


def test_sample_answers_have_each_class_once_right_and_once_wrong():
    outputs, y = sample_answers(KINDS["category"][0])
    assert y.tolist() == [0, 1, 2, 0, 1, 2]
    assert outputs.argmax(1).tolist() == [0, 1, 2, 1, 2, 0]
    assert (outputs.dtype, outputs.sum(1).tolist()) == (torch.float32, [1] * 6)
    several, y_NC = sample_answers(KINDS["multicategory"][0])
    assert torch.equal(several, outputs)
    assert torch.equal(y_NC, F.one_hot(y, 3).float())
    assert y_NC.dtype == torch.float32


def test_sample_answers_of_numbers_differ_from_their_targets():
    outputs, y = sample_answers(KINDS["regression"][0])
    assert y.tolist() == [0, 1, 2, 3]
    assert outputs.tolist() == [[3], [2], [1], [0]]
    assert outputs.dtype == y.dtype == torch.float32


def test_the_loss_is_by_the_kind_of_targets():
    labels = np.array([0, 1, 2, 2])
    assert build_objective_loss(ClassifierConfig(), KINDS["multicategory"][0], labels) is binary_cross_entropy
    assert build_objective_loss(ClassifierConfig(), KINDS["regression"][0], labels) is squared_error
    logits, y = torch.randn(5, 3), torch.tensor([0, 1, 2, 1, 0])
    loss = build_objective_loss(ClassifierConfig(class_weights=[1, 2, 3]), KINDS["category"][0], labels)
    torch.testing.assert_close(loss(logits, y), F.cross_entropy(logits, y, torch.tensor([1.0, 2, 3])))
    with pytest.raises(UserError, match="class_weights"):
        build_objective_loss(ClassifierConfig(class_weights=[1, 2]), KINDS["category"][0], labels)


def test_losses_are_means_in_the_dtype_of_the_outputs():
    prediction_b1, y_b = torch.tensor([[1.0], [4]], dtype=torch.bfloat16), torch.tensor([3.0, 3], dtype=torch.float64)
    assert squared_error(prediction_b1, y_b).item() == 2.5
    assert squared_error(prediction_b1, y_b).dtype == torch.bfloat16
    logits_bC, y_bC = torch.zeros(2, 3, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.float64)
    assert binary_cross_entropy(logits_bC, y_bC).item() == pytest.approx(0.693, abs=0.003)
    assert binary_cross_entropy(logits_bC, y_bC).dtype == torch.bfloat16
