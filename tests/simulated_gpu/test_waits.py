"""Tests that a step with logging, a status exchange, micro-batches, class weights and clipping does not synchronize."""

import pytest

from simulated_gpu.count_step import count
from ulmfit_dist.checkpointing import callback

EVERYTHING = [
    "tracking.log_interval=1",
    "runtime.micro_batch_size=16",
    "lm.grad_clip=0.3",
    "classifier.grad_clip=0.1",
    "classifier.class_weights=balanced",
    "classifier.label_smoothing=0.1",
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_log_lines_and_status_exchanges_do_not_wait(precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(callback, "MAX_STEPS_BETWEEN_EXCHANGES", 1)  # one per step
    exchanges = []
    status = callback.CheckpointCallback._status
    monkeypatch.setattr(
        callback.CheckpointCallback, "_status", lambda self: exchanges.append(self.learn.stage_step) or status(self)
    )
    for stage, (counters, _) in count(precision, EVERYTHING).items():
        assert not counters.waits, stage
        assert counters.kernels.total() > 0
    assert exchanges.count(2) == exchanges.count(3) == 2  # in both stages
