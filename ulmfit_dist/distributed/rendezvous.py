"""The wait for the other ranks, before the process group that would wait for them in silence.

torch waits for a missing rank inside C++, for hours and deaf to signals. Here the ranks first meet at the same key-value
store (rank 0's, or the launcher's) in steps of a second at most: a rank says for whom it waits, a signal ends the wait, and
so does `runtime.join_timeout`. The process group then opens on that store.
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

EVERY = 30.0
"""Seconds between two lines that say for whom a rank waits."""
STEP = 1.0
"""Longest time, in seconds, in which a signal is not heard."""
STORE_SECONDS = 10.0
"""Time limit of an operation of the store, in seconds."""
ADVICE = "start the ranks by `accelerate launch`; for one process unset RANK and WORLD_SIZE"

_joins = 0
"""How many groups this process has joined: a store that outlives a group still has its keys."""


@dataclass(frozen=True)
class Meeting:
    """Address at which this rank meets the others.

    Attributes:
        is_held_by_launcher: the store is the launcher's, not rank 0's.
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
    """Read the launch variables; None where they name one process, or are another launcher's (MPI's).

    Raises:
        UserError: half of the variables, or values that make no sense.
    """
    world_size = _whole_number("WORLD_SIZE", 1)
    if "RANK" not in os.environ and any(f"{mpi}_RANK" in os.environ for mpi in ("PMI", "OMPI_COMM_WORLD", "MV2_COMM_WORLD")):
        return None
    rank = _whole_number("RANK", 0)
    if rank >= world_size:
        raise UserError(f"RANK={rank} with WORLD_SIZE={world_size}: ranks go from 0 to WORLD_SIZE - 1; {ADVICE}")
    if world_size == 1:
        return None
    for name in ("RANK", "MASTER_ADDR"):
        if not os.environ.get(name):
            raise UserError(f"WORLD_SIZE={world_size} is set, and {name} is not: set it, or {ADVICE}")
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Meeting(rank, world_size, os.environ["MASTER_ADDR"], _whole_number("MASTER_PORT", 29500), held)


def meet(meeting: Meeting, minutes: float) -> Store:
    """Wait until all ranks have come, and return the store that they have met at.

    Raises:
        UserError: ranks that do not come in time, or a port in use.
    """
    global _joins
    _joins += 1
    prefix = f"attempt {attempt()} group {_joins}"
    wait = _Wait(meeting, minutes)
    while True:
        _wait_for_port(wait)
        store = _connect(meeting, prefix)
        if store is not None and _wait_for_ranks(wait, store):
            return store
        wait.step([0], "connection lost")


class _Wait:
    """How long a rank has waited, and when it says so next."""

    def __init__(self, meeting: Meeting, minutes: float):
        self.meeting, self.minutes = meeting, minutes
        self.since, self.start = time.strftime("%H:%M:%S"), time.monotonic()
        self.next_line = self.start + EVERY

    def step(self, missing: list[int], reason: str = "") -> None:
        """Sleep for a moment; before that say which ranks are missing, where it is time to."""
        here, now = self.meeting, time.monotonic()
        why = f" ({reason})" if reason else ""
        if now - self.start > self.minutes * 60:
            raise UserError(
                f"rank {here.rank} has waited {self.minutes:g} minutes (runtime.join_timeout) at {here.address}{why}, and "
                f"{_names(missing)} of {here.world_size} did not come: check MASTER_ADDR, MASTER_PORT, WORLD_SIZE and RANK "
                f"of all ranks, or {ADVICE}"
            )
        if now >= self.next_line:
            self.next_line = now + EVERY
            line = f"rank {here.rank} waits for {len(missing)} of {here.world_size} ranks ({_names(missing)})"
            print(f"{line} at {here.address} since {self.since}{why}", file=sys.stderr, flush=True)
        time.sleep(min(STEP, 0.1))


def _wait_for_port(wait: _Wait) -> None:
    here = wait.meeting
    if here.rank == 0 and not here.is_held_by_launcher:
        return
    while True:
        try:
            socket.create_connection((here.host, here.port), timeout=STEP).close()
            return
        except OSError as error:
            reason = error.strerror or f"{error}"
        wait.step([0], reason)


def _connect(here: Meeting, prefix: str) -> Store | None:
    """Connect to the store, or open it on rank 0; None where the other end has gone again."""
    import torch.distributed as dist

    is_master = here.rank == 0 and not here.is_held_by_launcher
    limit = timedelta(seconds=STORE_SECONDS)
    try:
        store = dist.TCPStore(
            here.host, here.port, here.world_size, is_master, limit, wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:  # of which torch's DistNetworkError is one
        if not is_master:
            return None
        message = " ".join(f"{error}".split())[:200]
        raise UserError(
            f"rank 0 cannot listen at {here.address} (MASTER_ADDR, MASTER_PORT): {message}: "
            "set MASTER_PORT to a free port, the same for all ranks"
        ) from None
    return dist.PrefixStore(prefix, store)


def _wait_for_ranks(wait: _Wait, store: Store) -> bool:
    """Wait for all ranks' keys; return False where the store is gone."""
    here = wait.meeting
    keys = [f"here/{rank}" for rank in range(here.world_size)]
    try:
        store.set(keys[here.rank], "")
        while not store.check(keys):
            wait.step([rank for rank, key in enumerate(keys) if not store.check([key])])
    except RuntimeError:
        return False
    except BaseException:
        with suppress(RuntimeError):
            store.delete_key(keys[here.rank])  # so that nobody counts on a rank that has given up
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
