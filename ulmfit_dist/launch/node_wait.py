"""Thread that watches a launcher's wait for the launchers of other nodes.

torch's launcher joins those of the other nodes before it starts a rank. It waits in C++ for a quarter of an hour or longer,
without output, and Python's signal handlers do not run. The thread prints what the launcher waits for, handles the signals,
and ends the process after `runtime.join_timeout`. The trade-off: it detects the end of the wait by the child processes of
the launcher. Ranks have a time limit of their own (`rendezvous.py`).
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass

from ulmfit_dist.cli.parser import parse
from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.env import report_error
from ulmfit_dist.distributed.launch_settings import read_config_file
from ulmfit_dist.errors import RESUMABLE, USER_ERROR, UserError

LINE_SECONDS = 30.0
"""Seconds between two lines of a launcher that waits."""
POLL_SECONDS = 1.0
"""Seconds between two looks at the child processes."""


@dataclass(frozen=True)
class Nodes:
    """Rendezvous of the launchers of several nodes, from the options of `accelerate launch` or its config file."""

    number: int
    rank: int
    address: str


def read_nodes(args: argparse.Namespace, config_file: str | None) -> Nodes | None:
    """Return the launcher's settings of nodes; None for a single node."""
    config = read_config_file(config_file) if config_file is not None else None

    def option(name: str) -> object:
        value = getattr(args, name, None)
        return value if value is not None else getattr(config, name, None)

    number = int(str(option("num_machines") or 1))
    if number < 2:
        return None
    address = f"{option('main_process_ip') or '127.0.0.1'}:{option('main_process_port') or 29500}"
    return Nodes(number, int(str(option("machine_rank") or 0)), address)


def join_timeout(args: argparse.Namespace) -> float:
    """Return the minutes to wait: `runtime.join_timeout` of the launched config, or its default without a valid config."""
    if args.module and args.training_script == "ulmfit_dist":
        try:
            launched = parse(args.training_script_args)
            if getattr(launched, "config", None) is not None:
                return load_config(launched.config, launched.overrides).runtime.join_timeout
        except (UserError, SystemExit):
            pass  # wrong arguments, which the ranks report
    return RuntimeConfig().join_timeout


def watch(nodes: Nodes, minutes: float, signals: Collection[signal.Signals]) -> None:
    """Start to watch this process, which has handlers for the signals. Call it in the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written even while the main thread is in C++
    threading.Thread(target=_watch, args=(nodes, minutes, frozenset(signals), reader), daemon=True).start()


def _watch(nodes: Nodes, minutes: float, signals: frozenset[signal.Signals], reader: int) -> None:
    since, start = time.strftime("%H:%M:%S"), time.monotonic()
    next_line = start + LINE_SECONDS
    before: set[int] = set()
    while True:
        ranks = _children()
        if ranks & before:  # lives longer than a call of nvidia-smi
            break
        before = ranks
        if select.select([reader], [], [], POLL_SECONDS)[0] and signals & set(os.read(reader, 64)) and not ranks:
            os._exit(RESUMABLE)
        now = time.monotonic()
        if now - start > minutes * 60:
            report_error(_missing(nodes, minutes))
            sys.stderr.flush()
            os._exit(USER_ERROR)
        if now >= next_line:
            next_line = now + LINE_SECONDS
            line = f"node {nodes.rank} waits for the launchers of all {nodes.number} nodes at {nodes.address} since {since}"
            print(line, file=sys.stderr, flush=True)


def _missing(nodes: Nodes, minutes: float) -> UserError:
    return UserError(
        f"node {nodes.rank} has waited {minutes:g} minutes (runtime.join_timeout) at {nodes.address}, and not all "
        f"{nodes.number} nodes joined: start the launcher on each with the same address, port and number of nodes, and with "
        f"different node ranks"
    )


def _children() -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process().children()}
