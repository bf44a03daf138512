"""Sums of the language model's and the classifier's metrics, by manual values."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.data.batches import MicroBatch
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.metrics.accumulators import (
    NUM_WRONG,
    ClassifierMetrics,
    LMMetrics,
    Misclassification,
    f1_macro,
    perplexity,
)

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(RuntimeConfig(precision="fp32"))


def batch_of(y: torch.Tensor, documents: np.ndarray | None = None) -> MicroBatch:
    return MicroBatch(torch.ones(len(y), 1), y, range(len(y)), len(y), len(y), documents)


def test_the_language_models_metrics_are_means_over_tokens(runtime: Runtime):
    scores = iter([(6.0, 1.0, 4.0), (1.0, 2.0, 3.0)])  # sum of the losses, correct tokens, tokens
    metrics = LMMetrics(SimpleNamespace(score=lambda prediction, y: tuple(map(torch.tensor, next(scores)))))
    metrics.reset(CPU)
    for _ in range(2):
        metrics.update(torch.zeros(1), batch_of(torch.zeros(1, 1)))
    actual = metrics.compute(runtime)
    assert actual == pytest.approx({"valid_loss": 1, "perplexity": math.e, "accuracy": 3 / 7})
    assert metrics.score(actual) == -actual["valid_loss"]
    metrics.reset(META)
    assert (metrics.sums.device, metrics.sums.dtype) == (META, torch.float64)


def test_perplexity_overflows_to_infinity():
    assert perplexity(0) == 1
    assert perplexity(699.9) == math.exp(699.9)
    assert perplexity(700) == perplexity(1e9) == math.inf


def test_sums_are_of_fp64_on_the_device_of_the_model():
    metrics = ClassifierMetrics(3)
    metrics.reset(META)
    for sums in (metrics.losses, metrics.confusion_CC, metrics.bins_K3, metrics.wrong_W5):
        assert (sums.device, sums.dtype) == (META, torch.float64)


def test_rows_are_true_classes_and_columns_predicted_ones(runtime: Runtime):
    metrics = ClassifierMetrics(3)
    metrics.reset(CPU)
    logits = torch.tensor([[5.0, 0, 0], [0, 5, 0], [0, 5, 0], [0, 5, 0]])
    metrics.update(logits, batch_of(torch.tensor([0, 1, 0, 2])))
    actual = metrics.compute(runtime)
    assert metrics.confusion_CC.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert actual == pytest.approx(
        {
            "valid_loss": F.cross_entropy(logits, torch.tensor([0, 1, 0, 2])).item(),
            "accuracy": 0.5,
            "f1_macro": (2 / 3 + 2 / 4 + 0) / 3,
        }
    )
    assert metrics.score(actual) == 0.5
    assert metrics.most_wrong == []  # the batch does not name its documents


def test_f1_is_the_mean_of_classes_that_occur_or_are_predicted():
    assert f1_macro(torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 0, 0]])) == pytest.approx(
        (2 / 3 + 0 + 4 / 5) / 3
    )


def test_the_most_wrong_documents_are_kept_highest_loss_first(runtime: Runtime):
    metrics = ClassifierMetrics(2)
    metrics.reset(CPU)
    generator = torch.Generator().manual_seed(0)
    logits, y = 3 * torch.randn(90, 2, generator=generator), torch.randint(0, 2, (90,), generator=generator)
    documents = np.random.default_rng(0).permutation(1000)[:90]
    for part in (slice(0, 3), slice(3, 60), slice(60, 90)):
        metrics.update(logits[part], batch_of(y[part], documents[part]))
    metrics.compute(runtime)
    losses = F.cross_entropy(logits.double(), y, reduction="none")
    probability, predicted = logits.double().softmax(1).max(1)
    wrong = [i for i in losses.argsort(descending=True).tolist() if predicted[i] != y[i]]
    assert NUM_WRONG == len(metrics.most_wrong) < len(wrong)
    for actual, i in zip(metrics.most_wrong, wrong, strict=False):
        expected = Misclassification(
            int(documents[i]), int(y[i]), int(predicted[i]), probability[i].item(), losses[i].item()
        )
        assert actual.__dict__ == pytest.approx(expected.__dict__)
        assert all(type(value) is int for value in (actual.document, actual.label, actual.predicted))


def test_equal_losses_are_in_the_order_of_the_documents_and_correct_ones_are_left_out(runtime: Runtime):
    metrics = ClassifierMetrics(2)
    metrics.reset(CPU)
    logits = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 9]])
    metrics.update(logits, batch_of(torch.tensor([1, 0, 1, 1]), np.array([7, 8, 3, 9])))
    metrics.compute(runtime)
    assert [wrong.document for wrong in metrics.most_wrong] == [3, 7]
    metrics.reset(CPU)
    metrics.update(logits[3:], batch_of(torch.tensor([1]), np.array([9])))
    metrics.compute(runtime)
    assert metrics.most_wrong == []


def test_squared_distances_are_summed_over_the_classes(runtime: Runtime):
    metrics = ClassifierMetrics(3)
    metrics.reset(CPU)
    probability = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], dtype=torch.float64)
    metrics.add(probability.log(), torch.tensor([0, 1]))
    assert metrics.compute(runtime)["valid_loss"] == pytest.approx(-(math.log(0.5) + math.log(0.1)) / 2)
    assert metrics.brier_score == pytest.approx((0.25 + 0.09 + 0.04 + 0.01 + 0.81 + 0.64) / 2)


@pytest.mark.parametrize(("log_probability", "number"), [(1e-9, 14), (-80.0, 0)])
def test_a_probability_outside_of_its_range_by_rounding_is_in_a_bin_at_the_edge(log_probability: float, number: int):
    metrics = ClassifierMetrics(2)
    metrics.reset(CPU)
    metrics.add(torch.tensor([[log_probability, -100.0]], dtype=torch.float64), torch.tensor([0]))
    assert metrics.bins_K3[:, 0].nonzero().flatten().tolist() == [number]
