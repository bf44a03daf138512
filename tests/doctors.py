"""Helpers for the tests of `ulmfit-dist doctor`: small configs, and ranks in separate processes."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import forked
import torch.distributed as dist
from conftest import ROOT

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.doctor.checks import Context
from ulmfit_dist.doctor.monitor import Monitor

TINY = (
    "model={emb_sz: 16, n_hid: 20, n_layers: 2}",
    "tokenizer.max_vocab=300",
    "tracking.wandb_mode=disabled",
    "runtime.precision=fp32",
)
MINUTE = 60.0
"""Longest time in which a problem must be reported, in seconds."""


def argv_of(folder: Path, *overrides: str) -> list[str]:
    """Return the command line of a doctor with a small config."""
    return ["doctor", *TINY, f"runs_dir={folder}/runs", f"data.cache_dir={folder}/cache", *overrides]


def context_of(folder: Path, *overrides: str) -> Context:
    """Return the context of one process without a runtime."""
    config = load_config(None, ["data.path=.", *argv_of(folder, *overrides)[1:]])
    return Context(config, 0, 1, 0, Monitor(0, ["rank 0"], [], report=lambda results: None), {})


def row(content: str, check: str) -> dict:
    """Return the row of a check in a JSON report."""
    (result,) = [result for result in json.loads(content)["checks"] if result["check"] == check]
    return result


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def store_at(port: int) -> dist.TCPStore:
    """Connect to the store of a doctor with two ranks, as soon as its rank 0 listens.

    torch's client retries at exponentially growing intervals, and may miss a doctor that has already finished.
    """
    deadline = time.monotonic() + 2 * MINUTE
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return dist.TCPStore("127.0.0.1", port, 2, False, timedelta(seconds=60), wait_for_workers=False)
        assert time.monotonic() < deadline, f"nothing listens at port {port}"
        time.sleep(0.05)


def start(rank: int, world_size: int, port: int, folder: Path) -> subprocess.Popen[str]:
    """Start a rank of a doctor, the first of its node, in a separate process without a launcher."""
    launch = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    env = {
        **os.environ,
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(ROOT),
        **{key: str(value) for key, value in launch.items()},
    }
    command = [sys.executable, "-m", "ulmfit_dist", *argv_of(folder, "--json")]
    return forked.popen(command, ROOT, env, subprocess.PIPE, subprocess.PIPE)
