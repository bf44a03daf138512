"""Checks and their results: the types shared by all modules of this package.

A check is a small function from a `Context` to a `Finding`. It runs on every rank. An exception in it becomes a finding with
its class and message, so that one broken check does not hide the results of the others. The trade-off: no traceback.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import UserError

if TYPE_CHECKING:
    import torch

    from ulmfit_dist.distributed.runtime import Runtime
    from ulmfit_dist.doctor.monitor import Monitor

LIMIT, COLLECTIVE_LIMIT, QUICK = 50.0, 30.0, 20.0
"""Time limits of a check that computes, of a collective one (counted from the arrival of the last rank), and of one that
computes nothing, in seconds."""


class Status(str, Enum):
    """Outcomes of a check, from best to worst."""

    SKIPPED = "skipped"
    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"

    @property
    def severity(self) -> int:
        return list(Status).index(self)


@dataclass(frozen=True)
class Finding:
    """Outcome of a check on one rank.

    Attributes:
        status: ok, warning, failure or skipped.
        details: measured values, or the reason for skipping the check.
        fix: instruction for the user after a warning or a failure.
    """

    status: Status
    details: str
    fix: str = ""


@dataclass(frozen=True)
class Result:
    """Finding of a check on one rank, with its duration in seconds."""

    check: str
    finding: Finding
    seconds: float = 0.0


@dataclass
class Context:
    """Inputs of the checks, and results that later checks read.

    Attributes:
        config: config of the run.
        rank, world_size, local_rank: ranks from the launch environment.
        monitor: exchange between ranks through the rendezvous store.
        learners: builders of learners by stage, from a config, a runtime and a token store.
        runtime: runtime of this rank; None until the ranks have joined.
        resolved: resolved precision; None until it is known.
        measured: values for the last lines of the report, such as tokens per second.
        created: folders created by the checks, which are removed at the end.
    """

    config: Config
    rank: int
    world_size: int
    local_rank: int
    monitor: Monitor
    learners: dict[str, Callable[..., Any]]
    runtime: Runtime | None = None
    resolved: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    created: list[Path] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Device of this rank: that of the runtime, or the one that a runtime would select."""
        import torch

        if self.runtime is not None:
            return self.runtime.device
        return torch.device("cuda", self.local_rank) if has_gpu() else torch.device("cpu")


@dataclass(frozen=True)
class Check:
    """Named check.

    Attributes:
        name: name in the table.
        function: the check itself.
        collective: whether all ranks run it together; such checks are skipped after one of them has raised on a rank.
        needs_runtime: whether it is skipped if the ranks could not join.
        limit: time limit, in seconds.
    """

    name: str
    function: Callable[[Context], Finding]
    collective: bool = False
    needs_runtime: bool = False
    limit: float = LIMIT

    @property
    def is_quick(self) -> bool:
        """True if it computes nothing, and needs no other rank."""
        return self.limit <= QUICK and not self.collective and not self.needs_runtime


def ok(details: str) -> Finding:
    return Finding(Status.OK, details)


def warning(details: str, fix: str) -> Finding:
    return Finding(Status.WARNING, details, fix)


def failure(details: str, fix: str) -> Finding:
    return Finding(Status.FAILURE, details, fix)


def skipped(reason: str) -> Finding:
    return Finding(Status.SKIPPED, reason)


def has_gpu() -> bool:
    """Return whether a run would compute on a GPU; False also for a GPU that torch cannot use."""
    from ulmfit_dist.distributed.devices import uses_gpu

    try:
        return uses_gpu()
    except UserError:
        return False


def run_checks(checks: list[Check], context: Context) -> list[Result]:
    """Run checks in order on this rank, collective ones with all other ranks, and publish each result."""
    results = []
    for check in checks:
        result = _run(check, context)
        context.monitor.publish(result)
        results.append(result)
    return results


def _run(check: Check, context: Context) -> Result:
    monitor, started = context.monitor, time.monotonic()
    with monitor.running(check.name, check.limit):
        if check.collective and (broken := monitor.meet(check.name)) is not None:
            return Result(check.name, skipped(f"not run: {broken}"))
        if check.needs_runtime and context.runtime is None:
            return Result(check.name, skipped("not run: the ranks have not joined"))
        monitor.restart_clock()
        try:
            finding = check.function(context)
        except Exception as error:
            finding = _finding_of(error)
            if check.collective and context.world_size > 1:
                monitor.broken = f"'{check.name}' failed on rank {context.rank}"
    return Result(check.name, finding, time.monotonic() - started)


def _finding_of(error: Exception) -> Finding:
    """Return the failure for an exception. The fix of a UserError follows its last colon."""
    message = " ".join(f"{error}".split())[:600]
    if isinstance(error, UserError):
        details, _, fix = message.rpartition(": ")
        return failure(details or message, fix)
    return failure(f"{type(error).__name__}: {message}", "search for the message in docs/troubleshooting.md, or report it")
