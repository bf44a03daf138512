"""Tests that a step with logging, a vote, micro-batches, class weights and clipping does not synchronize."""

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
def test_log_lines_and_votes_wait_for_nothing(precision: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(callback, "MOST_STEPS_BETWEEN_VOTES", 1)  # a vote each step
    votes = []
    vote = callback.CheckpointCallback._vote
    monkeypatch.setattr(callback.CheckpointCallback, "_vote", lambda self: votes.append(self.learn.stage_step) or vote(self))
    for stage, (counters, _) in count(precision, EVERYTHING).items():
        assert not counters.waits, stage
        assert counters.kernels.total() > 0
    assert votes.count(2) == votes.count(3) == 2  # in both stages
