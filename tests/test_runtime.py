"""What a run does around training: joining the other ranks, and leaving them."""

from pathlib import Path

from conftest import launch

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
