"""Rendezvous of all ranks at a key-value store, before the process group opens on it.

torch waits for a missing rank inside C++, for hours, without a message and without handling signals. Here the ranks poll the
store (rank 0's, or the launcher's) at intervals of at most a second: a rank logs which ranks are missing, and a signal or
`runtime.join_timeout` ends the wait. The trade-off: one more round trip to the store per rank before training.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from ulmfit_dist.distributed.env import attempt
from ulmfit_dist.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

LOG_INTERVAL = 30.0
"""Interval between two messages about missing ranks, in seconds."""
CONNECT_TIMEOUT = 1.0
"""Longest time without handling a signal, in seconds."""
STORE_TIMEOUT = 10.0
"""Timeout of a store operation, in seconds."""
ADVICE = "start the ranks with `accelerate launch`; for one process unset RANK and WORLD_SIZE"

_num_joins = 0
"""Number of groups that this process has joined: a store that outlives a group still holds its keys."""


@dataclass(frozen=True)
class Meeting:
    """Address of the store, and the rank that joins there.

    Attributes:
        is_held_by_launcher: whether the launcher hosts the store, not rank 0.
    """

    rank: int
    world_size: int
    host: str
    port: int
    is_held_by_launcher: bool

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


def read_meeting() -> Meeting | None:
    """Read the launch variables; None if they describe one process, or were set by MPI.

    Raises:
        UserError: if some of the variables are missing or invalid.
    """
    world_size = _whole_number("WORLD_SIZE", 1)
    if "RANK" not in os.environ and any(f"{mpi}_RANK" in os.environ for mpi in ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD")):
        return None
    rank = _whole_number("RANK", 0)
    if rank >= world_size:
        raise UserError(f"RANK={rank} with WORLD_SIZE={world_size}: give a rank from 0 to WORLD_SIZE - 1; {ADVICE}")
    if world_size == 1:
        return None
    for name in ("RANK", "MASTER_ADDR"):
        if not os.environ.get(name):
            raise UserError(f"WORLD_SIZE={world_size} is set, but {name} is not: set it, or {ADVICE}")
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Meeting(rank, world_size, os.environ["MASTER_ADDR"], _whole_number("MASTER_PORT", 29500), held)


def meet(meeting: Meeting, minutes: float) -> Store:
    """Wait until all ranks have joined, and return the store.

    Args:
        minutes: time limit of the wait, in minutes.

    Raises:
        UserError: if ranks do not join in time, or the port is in use.
    """
    global _num_joins
    _num_joins += 1
    prefix = f"attempt {attempt()} group {_num_joins}"
    wait = _Wait(meeting, minutes)
    while True:
        _wait_for_port(wait)
        store = _connect(meeting, prefix)
        if store is not None and _wait_for_ranks(wait, store):
            return store
        wait.step([0], "connection lost")


class _Wait:
    """Elapsed time of the wait, its messages and its time limit."""

    def __init__(self, meeting: Meeting, minutes: float):
        self.meeting, self.minutes = meeting, minutes
        self.since, self.start = time.strftime("%H:%M:%S"), time.monotonic()
        self.next_line = self.start + LOG_INTERVAL

    def step(self, missing: list[int], reason: str = "") -> None:
        """Log the missing ranks if a message is due, and sleep. Raises UserError after the time limit."""
        local, now = self.meeting, time.monotonic()
        cause = f" ({reason})" if reason else ""
        if now - self.start > self.minutes * 60:
            raise UserError(
                f"rank {local.rank} has waited {self.minutes:g} minutes (runtime.join_timeout) at {local.address}{cause}, "
                f"but {_names(missing)} of {local.world_size} did not join: check MASTER_ADDR, MASTER_PORT, WORLD_SIZE and "
                f"RANK of all ranks, or {ADVICE}"
            )
        if now >= self.next_line:
            self.next_line = now + LOG_INTERVAL
            line = f"rank {local.rank} waits for {len(missing)} of {local.world_size} ranks ({_names(missing)})"
            print(f"{line} at {local.address} since {self.since}{cause}", file=sys.stderr, flush=True)
        time.sleep(min(CONNECT_TIMEOUT, 0.1))


def _wait_for_port(wait: _Wait) -> None:
    local = wait.meeting
    if local.rank == 0 and not local.is_held_by_launcher:
        return
    while True:
        try:
            socket.create_connection((local.host, local.port), timeout=CONNECT_TIMEOUT).close()
            return
        except OSError as error:
            reason = error.strerror or f"{error}"
        wait.step([0], reason)


def _connect(meeting: Meeting, prefix: str) -> Store | None:
    """Connect to the store, or open it on rank 0; None if the remote end has closed again."""
    import torch.distributed as dist

    is_master = meeting.rank == 0 and not meeting.is_held_by_launcher
    timeout = timedelta(seconds=STORE_TIMEOUT)
    try:
        store = dist.TCPStore(
            meeting.host, meeting.port, meeting.world_size, is_master, timeout, wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:  # the base class of torch's DistNetworkError
        if not is_master:
            return None
        message = " ".join(f"{error}".split())[:200]
        raise UserError(
            f"rank 0 cannot listen at {meeting.address} (MASTER_ADDR, MASTER_PORT): {message}: "
            "set MASTER_PORT to a free port, the same for all ranks"
        ) from None
    return dist.PrefixStore(prefix, store)


def _wait_for_ranks(wait: _Wait, store: Store) -> bool:
    """Wait for the keys of all ranks; return False if the connection to the store is lost."""
    rank_keys = [f"joined/{rank}" for rank in range(wait.meeting.world_size)]
    own_key = rank_keys[wait.meeting.rank]
    try:
        store.set(own_key, "")
        while not store.check(rank_keys):
            wait.step([rank for rank, key in enumerate(rank_keys) if not store.check([key])])
    except RuntimeError:
        return False
    except BaseException:
        with suppress(RuntimeError):
            store.delete_key(own_key)  # so that the other ranks do not count a rank that has timed out
        raise
    return True


def _whole_number(name: str, default: int) -> int:
    value = os.environ.get(name, f"{default}")
    if not value.isdecimal():
        raise UserError(f"{name}={value} is not a whole number: {ADVICE}")
    return int(value)


def _names(ranks: list[int]) -> str:
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:8]))}{more}"
