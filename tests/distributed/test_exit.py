"""Tests of process exits: exit code, output, `atexit` functions and flushed files."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

SCRIPT = """
import atexit, signal, sys, threading, time
from ulmfit_dist.distributed.exit import exit_process

printed = threading.Event()

def late():
    printed.wait()
    time.sleep(0.2)
    print("thread")

def main():
    threading.Thread(target=late).start()
    atexit.register(print, "atexit")
    print("main")
    printed.set()
    {end}

exit_process(main)
"""


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}


def run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python with arguments, and capture its output unless the options redirect it."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, *argv], cwd=ROOT, text=True, env=ENVIRONMENT, timeout=600, **options)


def run_ranks(argv: list[str]) -> list[tuple[int, str]]:
    """Run Python with arguments as two ranks. Returns exit code and output of each."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        unused_port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(unused_port)}
    ranks = []
    for rank in range(2):
        environment = {**ENVIRONMENT, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true"}
        ranks.append(subprocess.Popen([sys.executable, *argv], env=environment, stdout=subprocess.PIPE, text=True))
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    return [(rank.returncode, output) for rank, output in zip(ranks, outputs, strict=True)]


@pytest.mark.parametrize(
    ("end", "code", "last_line"),
    [
        ("return 0", 0, ""),
        ("return 85", 85, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(2)", 2, ""),
        ("sys.exit(-2)", 254, ""),
        ("sys.exit('no such thing')", 1, "no such thing"),
        ("raise ValueError('a value')", 1, "ValueError: a value"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("atexit.register(lambda: 1 / 0); return 85", 85, "ZeroDivisionError: division by zero"),
        ("atexit.register(signal.raise_signal, signal.SIGTERM); return 85", 85, ""),
    ],
)
def test_threads_are_joined_atexit_runs_and_the_exit_code_is_pythons(end: str, code: int, last_line: str):
    result = run(["-c", SCRIPT.format(end=end)])
    assert result.returncode == code
    assert result.stdout.split() == ["main", "thread", "atexit"]
    assert last_line == (result.stderr.splitlines() or [""])[-1].strip()
    assert ("Traceback" in result.stderr) == ("Error" in last_line or "Keyboard" in last_line)


OPEN_FILES = """
import ctypes, sys
from ulmfit_dist.distributed.exit import exit_process

class Held:
    def __del__(self):
        print("finalized")

text, buffer, held = open(sys.argv[1] + ".txt", "w"), open(sys.argv[1] + ".bin", "wb"), Held()

def main():
    text.write("kept")
    buffer.write(b"kept")
    ctypes.CDLL(None).printf(b"from C ")
    return 0

exit_process(main)
"""


def test_open_files_are_flushed_and_nothing_is_finalized(tmp_path: Path):
    result = run(["-c", OPEN_FILES, str(tmp_path / "file")])
    assert (result.returncode, result.stdout, result.stderr) == (0, "from C ", "")
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == ["kept", "kept"]


def test_the_exit_causes_no_warning_of_torch():
    """torch.distributed has an object that warns if it is passed to `isinstance`."""
    code = "import torch.distributed; from ulmfit_dist.distributed.exit import exit_process; exit_process(lambda: 0)"
    result = run(["-c", code])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


WRITER = """
import sys
from ulmfit_dist.distributed.exit import exit_process

def main():
    print("output")
    return {code}

exit_process(main)
"""


def test_a_closed_pipe_does_not_change_the_exit_code():
    reading, writing = os.pipe()
    os.close(reading)
    result = run(["-c", WRITER.format(code=0)], stdout=writing)
    os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(("code", "expected"), [(0, 1), (85, 85)])
def test_output_that_cannot_be_written_is_an_error(code: int, expected: int):
    with open("/dev/full", "w") as full:
        result = run(["-c", WRITER.format(code=code)], stdout=full)
    assert result.returncode == expected
    assert result.stderr == "ulmfit-dist: error: standard output: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("command", [["-m", "ulmfit_dist"], ["-c", "from ulmfit_dist.__main__ import run; run()"]])
def test_both_entry_points_exit_with_the_code_of_the_command(command: list[str]):
    result = run([*command, "config", "none.yaml"])
    assert result.returncode == 2
    assert result.stderr.startswith("ulmfit-dist: error: ")
    assert result.stderr.count("\n") == 1
    assert run([*command, "--help"]).returncode == 0


def test_the_installed_command_is_the_entry_point_of_the_process():
    assert '\nulmfit-dist = "ulmfit_dist.__main__:run"\n' in (ROOT / "pyproject.toml").read_text()


LATE_COLLECTIVE = """
import atexit, os, sys, time
from pathlib import Path

rank, is_exiting = int(os.environ["RANK"]), Path(sys.argv[1])

def keep_the_gil():
    sys.setswitchinterval(100)
    is_exiting.touch()
    begun = time.monotonic()
    while time.monotonic() < begun + 2:  # gloo's thread ends the collective, and waits for the GIL to release its tensors
        pass

if rank == 0:
    atexit.register(keep_the_gil)  # first, so that it is called last

import torch
import torch.distributed as dist
from ulmfit_dist.distributed.exit import exit_process

def main():
    dist.init_process_group("gloo")
    while rank == 1 and not is_exiting.exists():
        time.sleep(0.01)
    dist.all_gather([torch.zeros(1), torch.zeros(1)], torch.ones(1), async_op=rank == 0)
    return 0

exit_process(main)
"""


def test_a_collective_that_ends_late_does_not_abort_the_process(tmp_path: Path):
    """With `sys.exit(main())` instead of `exit_process(main)`, signal 6 kills rank 0."""
    assert [code for code, _ in run_ranks(["-c", LATE_COLLECTIVE, str(tmp_path / "is_exiting")])] == [0, 0]


SCRIPT_OF_A_USER = """
import atexit, os
from pathlib import Path

def count_threads():
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    print(sum("gloo" in name for name in names), "threads of gloo")

atexit.register(count_threads)  # first, so that it is called last

from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime

keeps_group = os.environ["RANK"] == "0"
runtime = Runtime(RuntimeConfig(precision="fp32"), keeps_group=keeps_group)
runtime.all_gather_object("an object")
count_threads()
if keeps_group:
    with runtime:
        pass
else:
    runtime.register_shutdown()
    runtime.barrier()
"""


def test_a_script_ends_the_threads_of_gloo_before_the_interpreter_finalizes():
    """Rank 0 exits as after calls of `ulmfit_dist.api`, rank 1 as a script that holds a learner."""
    for code, output in run_ranks(["-c", SCRIPT_OF_A_USER]):
        assert code == 0
        before, after = output.splitlines()
        assert int(before.split()[0]) > 0
        assert after == "0 threads of gloo"


def test_five_runs_exit_with_their_codes(tmp_path: Path):
    """Small form of `python -m benchmarks.exits`: one run per scenario, with W&B, checkpoints and a process group."""
    result = run(["-m", "benchmarks.exits", "--count", "5", "--output", str(tmp_path / "exits.jsonl")])
    assert result.returncode == 0, result.stdout + result.stderr
    runs = [json.loads(line) for line in (tmp_path / "exits.jsonl").read_text().splitlines()]
    codes = {run["scenario"]: sorted(run["codes"].values()) for run in runs}
    assert codes == {"success": [0, 0], "keyboard": [85, 85], "sigterm": [85, 85], "user_error": [2, 2], "crash": [1, 1]}
