"""Tests of the time of a step, by part."""

from typing import Any

import pytest
import torch

from ulmfit_dist.distributed.step_timer import PARTS, StepTimer


class Clock:
    """Clock that advances by given amounts."""

    def __init__(self, step_timer: StepTimer, monkeypatch: pytest.MonkeyPatch):
        self.now, self.step_timer = 0.0, step_timer
        monkeypatch.setattr("ulmfit_dist.distributed.step_timer.time.perf_counter", lambda: self.now)

    def spend(self, seconds: float, part: str | None = None) -> None:
        self.now += seconds
        if part is not None:
            self.step_timer.end(part)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(StepTimer(torch.device("cpu")), monkeypatch)


def spent(clock: Clock) -> dict[str, Any]:
    return {part: seconds for part, seconds in clock.step_timer.take().read().parts.items() if seconds}


def test_each_second_counts_once_and_an_exchange_as_communication(clock: Clock):
    clock.step_timer.start()
    clock.spend(1, "data")
    clock.spend(2)
    with clock.step_timer.exchange():
        clock.spend(4)
    clock.spend(8, "forward")
    assert spent(clock) == {"data": 1, "communication": 4, "forward": 10}
    clock.spend(16, "backward")
    assert spent(clock) == {"backward": 16}
    assert spent(clock) == {}


def test_a_validation_does_not_count_but_a_checkpoint_after_it_does(clock: Clock):
    clock.step_timer.start()
    clock.spend(1, "data")
    clock.step_timer.stop()
    clock.spend(100)
    with clock.step_timer.checkpoint(), clock.step_timer.exchange():
        clock.spend(2)
    clock.spend(100)
    clock.step_timer.start()
    clock.spend(4)
    with clock.step_timer.checkpoint():
        clock.spend(8)
    clock.spend(16, "data")
    assert spent(clock) == {"data": 17, "optimizer": 4, "checkpoint": 10}


def test_intervals_that_are_not_taken_are_added_up(clock: Clock, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ulmfit_dist.distributed.step_timer.MAX_MARKS", 2)
    clock.step_timer.start()
    for _ in range(10):
        clock.spend(1)
        with clock.step_timer.exchange():
            clock.spend(2)
        clock.spend(4, "forward")
    assert len(clock.step_timer._marks) < 8
    assert spent(clock) == {"forward": 50, "communication": 20}


def test_nothing_is_counted_outside_of_training(clock: Clock):
    with clock.step_timer.exchange():
        clock.spend(1)
    assert clock.step_timer.take().read().parts == dict.fromkeys(PARTS, 0.0)
