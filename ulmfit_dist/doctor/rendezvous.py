"""Rendezvous of all ranks, checked before any other collective can block.

Ranks find each other through a key-value store at MASTER_ADDR:MASTER_PORT, which rank 0 or the launcher (`accelerate
launch`, torchrun) hosts. `torch.distributed` waits minutes to hours for a missing rank, and then reports a timed-out
connection. Here each step has its own time limit, and a failure names the address and the missing ranks. The trade-off:
ranks must start within `SECONDS` of each other.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from ulmfit_dist.distributed.env import attempt, rank_name
from ulmfit_dist.doctor.checks import Finding, failure, ok

if TYPE_CHECKING:
    from torch.distributed import Store

SECONDS = 30.0
"""Time limit for all ranks to arrive, in seconds."""
STORE_SECONDS = 10.0
"""Time limit of an operation of the store, in seconds."""


@dataclass(frozen=True)
class Launch:
    """Launch variables of this process; those of a single process if they are not set.

    Attributes:
        is_held_by_launcher: whether the launcher hosts the store, not rank 0.
    """

    rank: int
    world_size: int
    local_rank: int
    host: str
    port: int
    is_held_by_launcher: bool

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class JoinError(Exception):
    """Failed rendezvous, with its finding."""

    def __init__(self, finding: Finding):
        super().__init__(finding.details)
        self.finding = finding


def read_launch() -> Launch:
    """Read RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Raises JoinError if they are invalid."""
    variables = {}
    for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("MASTER_PORT", 29500)):
        value = os.environ.get(name, str(default))
        if not value.isdecimal():
            raise JoinError(failure(f"{name}={value} is not a whole number", "start the ranks with `accelerate launch`"))
        variables[name] = int(value)
    rank, world_size = variables["RANK"], variables["WORLD_SIZE"]
    if rank >= world_size:
        raise JoinError(
            failure(
                f"RANK={rank} with WORLD_SIZE={world_size}: expected a rank from 0 to {world_size - 1}",
                "set both, or start the ranks with `accelerate launch`",
            )
        )
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    held = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(rank, world_size, variables["LOCAL_RANK"], host, variables["MASTER_PORT"], held)


def join(launch: Launch, seconds: float = SECONDS) -> tuple[list[Store], list[str], Finding]:
    """Connect to the store twice, and wait for the other ranks.

    Args:
        seconds: time limit, in seconds.

    Returns:
        Two connections, one for each of two threads; the names of all ranks; the finding.

    Raises:
        JoinError: if the address does not respond, the port is in use, or ranks are missing.
    """
    deadline = time.monotonic() + seconds
    stores = [_connect(launch, deadline, is_first=i == 0) for i in range(2)]
    keys = [f"joined/{rank}" for rank in range(launch.world_size)]
    stores[0].set(keys[launch.rank], rank_name())
    stores[0].set(f"beat/{launch.rank}", "")
    while missing := [rank for rank, key in enumerate(keys) if not stores[0].check([key])]:
        if time.monotonic() > deadline:
            raise JoinError(_absent(launch, missing, seconds))
        time.sleep(0.1)
    names = [value.decode() for value in stores[0].multi_get(keys)]
    return stores, names, ok(f"{launch.world_size} ranks have joined at {launch.address}")


def _connect(launch: Launch, deadline: float, is_first: bool) -> Store:
    import torch.distributed as dist

    is_master = launch.rank == 0 and not launch.is_held_by_launcher
    if is_first and not is_master:
        _wait_for_port(launch, deadline)
    try:
        store = dist.TCPStore(
            launch.host,
            launch.port,
            launch.world_size,
            is_master,
            timedelta(seconds=STORE_SECONDS),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except RuntimeError as error:  # the base class of torch's DistNetworkError
        raise JoinError(_refused(launch, error)) from None
    return dist.PrefixStore(f"doctor/{attempt()}", store)


def _wait_for_port(launch: Launch, deadline: float) -> None:
    seconds = deadline - time.monotonic()
    while True:
        try:
            socket.create_connection((launch.host, launch.port), timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except OSError as error:
            reason = error.strerror or f"{error}"
        if time.monotonic() > deadline:
            raise JoinError(
                failure(
                    f"rank {launch.rank} cannot reach rank 0 at {launch.address} (MASTER_ADDR, MASTER_PORT) "
                    f"for {seconds:.0f} s: {reason}",
                    "start rank 0 there, set MASTER_ADDR to its host, or open the port between the nodes",
                )
            )
        time.sleep(0.2)


def _refused(launch: Launch, error: Exception) -> Finding:
    message = " ".join(f"{error}".split())[:300]
    if "EADDRINUSE" in message or "address already in use" in message.lower():
        return failure(
            f"port {launch.port} (MASTER_PORT) is in use by another process on this host",
            "set MASTER_PORT (`accelerate launch --main_process_port`) to a free port, the same for all ranks",
        )
    return failure(
        f"rendezvous at {launch.address} (MASTER_ADDR, MASTER_PORT) failed: {message}",
        "set MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free port there",
    )


def _absent(launch: Launch, missing: list[int], seconds: float) -> Finding:
    ranks = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    is_one = len(missing) == 1
    return failure(
        f"rank{'' if is_one else 's'} {ranks} of {launch.world_size} {'has' if is_one else 'have'} not joined at "
        f"{launch.address} (MASTER_ADDR, MASTER_PORT) within {seconds:.0f} s",
        "start the missing ranks with this address; for one process unset RANK and WORLD_SIZE",
    )
