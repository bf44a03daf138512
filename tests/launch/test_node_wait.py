"""A launcher whose other node does not join: messages, signals, time limit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ulmfit_dist.errors import RESUMABLE, USER_ERROR

LAUNCHER = """
import sys
from ulmfit_dist.launch import launcher, node_wait
node_wait.LINE_SECONDS = 0.5
sys.exit(launcher.main(sys.argv[1:]))
"""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start_node(rank: int, port: int, recipe: Path, timeout: float) -> subprocess.Popen[str]:
    options = ["--multi_gpu", "--num_machines", "2", "--machine_rank", rank, "--num_processes", "2"]
    options += ["--main_process_ip", "127.0.0.1", "--main_process_port", port, "--mixed_precision", "no"]
    arguments = ["-m", "ulmfit_dist", "lm", recipe, "data.source=bbc_news", f"runtime.join_timeout={timeout}"]
    command = [sys.executable, "-c", LAUNCHER, *map(str, [*options, *arguments])]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_ends_the_wait_for_the_other_node(rank: int, port: int, recipe: Path):
    with start_node(rank, port, recipe, 5) as node:
        assert node.stderr is not None
        line = next(line for line in node.stderr if line.startswith("node "))
        assert line.startswith(f"node {rank} waits for the launchers of all 2 nodes at 127.0.0.1:{port} since ")
        for _ in range(3):  # until torch waits in C++
            next(line for line in node.stderr if line.startswith("node "))
        node.send_signal(signal.SIGTERM)
        try:
            node.communicate(timeout=30)
        finally:
            node.kill()  # one that ignored the signal
    assert node.returncode == RESUMABLE


def test_a_missing_node_is_an_error_after_the_configs_time_limit(port: int, recipe: Path):
    with start_node(1, port, recipe, 0.05) as node:
        errors = node.communicate(timeout=120)[1]
    assert node.returncode == USER_ERROR
    (line,) = [line for line in errors.splitlines() if "error" in line]
    assert f"node 1 has waited 0.05 minutes (runtime.join_timeout) at 127.0.0.1:{port}, and not all 2 nodes joined" in line
