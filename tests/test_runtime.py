"""What a run does around training: joining the other ranks, and leaving them."""

import signal
from pathlib import Path

import pytest
from conftest import launch

from ulmfit_dist import stopping
from ulmfit_dist.config import RuntimeConfig
from ulmfit_dist.runtime import Runtime

LEAVE = """
from pathlib import Path
import torch
from ulmfit_dist.config import RuntimeConfig
from ulmfit_dist.runtime import Runtime

with Runtime(RuntimeConfig()) as runtime:
    model = runtime.accelerator.prepare_model(torch.nn.Linear(2, 2))
    model(torch.ones(1, 2)).sum().backward()
    del model
names = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
Path(f"rank-{runtime.rank}").write_text(" ".join(name for name in names if "gloo" in name))
"""


def test_no_thread_of_the_process_group_outlives_the_run(tmp_path: Path):
    """One that does can abort the process after it has done all its work."""
    (tmp_path / "leave.py").write_text(LEAVE)
    result = launch(["leave.py"], processes=2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(2)] == ["", ""]


def test_a_signal_does_not_interrupt_the_end_of_a_run_that_is_done(no_process_group: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    before = signal.getsignal(signal.SIGTERM)
    with stopping.at_once(), Runtime(RuntimeConfig(precision="no")) as runtime:
        monkeypatch.setattr(runtime.accelerator, "end_training", lambda: signal.raise_signal(signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is before
