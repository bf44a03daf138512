"""Tests of the step timer on a GPU. Skipped without a GPU."""

import time

import pytest
import torch

from ulmfit_dist.distributed.step_timer import StepTimer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is visible")


@pytest.mark.real_gpu(reason="the simulated GPU works as soon as work is launched, so a launch takes as long as the work")
def test_laps_are_the_devices_time_and_nothing_waits_for_it():
    step_timer, x = StepTimer(torch.device("cuda")), torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    step_timer.start()
    began = time.perf_counter()
    for _ in range(100):
        x = x @ x / 64
    step_timer.end("forward")
    launched = time.perf_counter() - began
    seconds = step_timer.take().read().parts["forward"]
    whole = time.perf_counter() - began
    assert launched < seconds <= whole
