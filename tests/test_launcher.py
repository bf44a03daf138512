"""`accelerate launch` with the exit code of its ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from ulmfit_dist.launcher import exit_code

RANK = """
import os, signal, sys, time
from pathlib import Path

folder, code = Path(sys.argv[1]), int(sys.argv[2])
for number in (signal.SIGUSR1, signal.SIGINT):
    signal.signal(number, lambda *_: sys.exit(85))
if code < 0 and os.environ.get("RANK") == "1":
    os.kill(os.getpid(), -code)
(folder / os.environ.get("RANK", "0")).touch()
if code:
    sys.exit(abs(code))
time.sleep(60)
"""


def start(folder: Path, code: int, processes: int, **options: bool) -> subprocess.Popen[str]:
    (folder / "rank.py").write_text(RANK)
    words = ["--config_file", ROOT / "configs/accelerate/multi_gpu.yaml", "--num_processes", processes]
    command = [sys.executable, "-m", "ulmfit_dist.launcher", *words, folder / "rank.py", folder, code]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*map(str, command)], env=environment, stdout=-1, stderr=-1, text=True, **options)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_reaches_the_ranks_and_their_exit_code_whoever_waits(tmp_path: Path, processes: int):
    launcher = start(tmp_path, 0, processes)
    while len(list(tmp_path.glob("[0-9]"))) < processes:
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.01)
    launcher.send_signal(signal.SIGUSR1)
    assert launcher.communicate(timeout=30) == ("", "")
    assert launcher.returncode == 85


@pytest.mark.parametrize("processes", [1, 2])
def test_a_keyboards_signal_reaches_each_rank_once(tmp_path: Path, processes: int):
    launcher = start(tmp_path, 0, processes, start_new_session=True)  # as a terminal has its commands
    while len(list(tmp_path.glob("[0-9]"))) < processes:
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.01)
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.communicate(timeout=30) == ("", "")
    assert launcher.returncode == 85


def test_a_rank_that_is_killed_is_named_and_other_exit_codes_win(tmp_path: Path):
    launchers = [start(tmp_path, 2, 2), start(tmp_path, -signal.SIGKILL, 2)]
    (refused, lost) = [launcher.communicate(timeout=60) for launcher in launchers]
    assert refused == ("", "")
    assert launchers[0].returncode == 2
    assert "ulmfit-dist: rank 1 was ended by signal 9\n" in lost[1]
    assert launchers[1].returncode in (1, 9)  # as the other rank was faster, or not


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([85, 85], 85),
        ([85, -15], 85),
        ([-10], 85),
        ([2, -15], 2),
        ([2, 2], 2),
        ([-9], 1),
        ([1, -9], 1),
        ([85, 1], 1),
        ([85, -9], 1),
    ],
)
def test_the_exit_code_is_resumable_only_where_all_ranks_are(codes: list[int], expected: int):
    assert exit_code(codes) == expected
