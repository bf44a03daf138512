"""Tests that a training step's kernels, waits and LSTM calls with non-contiguous weights do not increase."""

import pytest

from simulated_gpu.count_step import count

MOST_KERNELS = {"lm": 120, "classifier": 165}
"""Kernels of a step in bf16 without LSTMs; fp32 has fewer, fp16 has more because of loss scaling."""

MOST_KERNELS_OF_A_SCALER = 15
"""Additional kernels in fp16."""


@pytest.fixture(scope="module", params=["fp32", "bf16", "fp16"])
def counted(request: pytest.FixtureRequest):
    return request.param, count(request.param, [])


@pytest.mark.parametrize("stage", ["lm", "classifier"])
def test_a_step_launches_few_kernels(stage: str, counted):
    precision, actual = counted
    counters, _ = actual[stage]
    assert counters.lstms == 3
    assert counters.kernels.total() <= MOST_KERNELS[stage] + (MOST_KERNELS_OF_A_SCALER if precision == "fp16" else 0)


@pytest.mark.parametrize("stage", ["lm", "classifier"])
def test_a_step_waits_for_nothing_and_computes_lstms_from_flat_weights(stage: str, counted):
    counters, _ = counted[1][stage]
    assert counters.scattered == 0
    assert not counters.waits
