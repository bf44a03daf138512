"""A launcher's wait for those of the other nodes, watched by a thread.

torch's launcher meets the other nodes' before it starts any rank, and waits for them inside C++ for a quarter of an hour and
more, silent and deaf to signals. The thread says that it waits, hears the signals, and ends the process after
`runtime.join_timeout`. Once there are ranks, they speak for themselves (`rendezvous.py`).
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

EVERY = 30.0
"""Seconds between two lines that say what the launcher waits for."""
STEP = 1.0


@dataclass(frozen=True)
class Nodes:
    """Address at which the launchers of several nodes meet, from the options of `accelerate launch` or its config file."""

    number: int
    rank: int
    address: str


def read_nodes(args: argparse.Namespace, config_file: str | None) -> Nodes | None:
    """Read what the launcher is told of nodes; None for a single one."""
    config = read_config_file(config_file) if config_file is not None else None

    def named(name: str) -> object:
        value = getattr(args, name, None)
        return value if value is not None else getattr(config, name, None)

    number = int(str(named("num_machines") or 1))
    if number < 2:
        return None
    address = f"{named('main_process_ip') or '127.0.0.1'}:{named('main_process_port') or 29500}"
    return Nodes(number, int(str(named("machine_rank") or 0)), address)


def join_timeout(args: argparse.Namespace) -> float:
    """Minutes to wait: those of the config in the launched words, or the default where there is none that can be read."""
    if args.module and args.training_script == "ulmfit_dist":
        try:
            words = parse(args.training_script_args)
            if hasattr(words, "config"):  # as all commands have that train
                return load_config(words.config, words.overrides).runtime.join_timeout
        except (UserError, SystemExit):
            pass  # wrong words, which the ranks will name
    return RuntimeConfig().join_timeout


def watch(nodes: Nodes, minutes: float, signals: Collection[signal.Signals]) -> None:
    """Begin to watch this process, which has handlers for the signals; for its main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written to at once, whatever the main thread is in
    threading.Thread(target=_watch, args=(nodes, minutes, frozenset(signals), reader), daemon=True).start()


def _watch(nodes: Nodes, minutes: float, signals: frozenset[signal.Signals], reader: int) -> None:
    since, start = time.strftime("%H:%M:%S"), time.monotonic()
    next_line = start + EVERY
    before: set[int] = set()
    while True:
        ranks = _children()
        if ranks & before:  # one that lives for longer than a call of nvidia-smi
            break
        before = ranks
        if select.select([reader], [], [], STEP)[0] and signals & set(os.read(reader, 64)) and not ranks:
            os._exit(RESUMABLE)
        now = time.monotonic()
        if now - start > minutes * 60:
            report_error(_missing(nodes, minutes))
            sys.stderr.flush()
            os._exit(USER_ERROR)
        if now >= next_line:
            next_line = now + EVERY
            line = f"node {nodes.rank} waits for the launchers of all {nodes.number} nodes at {nodes.address} since {since}"
            print(line, file=sys.stderr, flush=True)


def _missing(nodes: Nodes, minutes: float) -> UserError:
    return UserError(
        f"node {nodes.rank} has waited {minutes:g} minutes (runtime.join_timeout) at {nodes.address}, and not all "
        f"{nodes.number} nodes came: start the launcher on each, with the same address, port and number of nodes, and a "
        f"rank of its own"
    )


def _children() -> set[int]:
    import psutil

    return {child.pid for child in psutil.Process().children()}
