"""Tests of the rendezvous, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from ulmfit_dist.distributed.rendezvous import read_meeting
from ulmfit_dist.errors import RESUMABLE, USER_ERROR, UserError

ROOT = Path(__file__).resolve().parents[2]
RANK = """
import sys
from ulmfit_dist.distributed import rendezvous, signals
from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.errors import ResumableInterrupt, UserError
from ulmfit_dist.distributed.runtime import Runtime

rendezvous.LOG_INTERVAL = 0.5
try:
    with signals.at_once(), Runtime(RuntimeConfig(precision="fp32", join_timeout=float(sys.argv[1]))) as runtime:
        print(runtime.all_gather_object(runtime.rank))
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
except ResumableInterrupt:
    sys.exit(85)
"""


def start_rank(rank: int, port: int, minutes: float = 5) -> subprocess.Popen[str]:
    launch = {
        "RANK": f"{rank}",
        "LOCAL_RANK": f"{rank}",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": f"{port}",
    }
    environment = {**os.environ, **launch, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": f"{ROOT}"}
    command = [sys.executable, "-c", RANK, f"{minutes}"]
    return forked.popen(command, Path.cwd(), environment, subprocess.PIPE, subprocess.PIPE)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("first", [0, 1])
def test_a_waiting_rank_logs_missing_ranks_and_joins_a_later_one(first: int, port: int):
    with start_rank(first, port) as early:
        assert early.stderr is not None
        line = early.stderr.readline()
        with start_rank(1 - first, port) as late:
            outputs = [rank.communicate(timeout=120)[0] for rank in (early, late)]
    assert line.startswith(f"rank {first} waits for 1 of 2 ranks (rank {1 - first}) at 127.0.0.1:{port} since ")
    assert outputs == ["[0, 1]\n"] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_rank_is_named_after_the_time_limit(rank: int, port: int):
    with start_rank(rank, port, minutes=0.01) as alone:
        errors = alone.communicate(timeout=120)[1]
    assert alone.returncode == USER_ERROR
    line = errors.splitlines()[-1]
    assert "runtime.join_timeout" in line
    assert f"rank {1 - rank} of 2 did not join: check MASTER_ADDR" in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_ends_the_wait(number: signal.Signals, port: int):
    with start_rank(0, port) as alone:
        assert alone.stderr is not None
        alone.stderr.readline()
        alone.send_signal(number)
        alone.communicate(timeout=60)
    assert alone.returncode == RESUMABLE


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set, but RANK is not"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE=2 is set, but MASTER_ADDR is not"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK=2 with WORLD_SIZE=2"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is not a whole number"),
    ],
)
def test_incomplete_launch_variables_are_refused(variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        read_meeting()
