"""Checks and their results: the vocabulary that all modules of this package share.

A check is a small function from a `Context` to a `Finding`. It runs on every rank, and an exception in it is a finding as
well: its class and message, never a traceback. The modules of this package hold the checks by subject.
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
"""Time limits of a check, in seconds: one that computes; one that all ranks run together, counted from the arrival of the
last of them; one that computes nothing."""


class Status(str, Enum):
    """Outcomes, from the best to the worst."""

    SKIPPED = "skipped"
    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"

    @property
    def severity(self) -> int:
        return list(Status).index(self)


@dataclass(frozen=True)
class Finding:
    """The outcome of a check on one rank.

    Attributes:
        status: ok, warning, failure or skipped.
        found: values that were seen; the reason where the check is skipped.
        fix: instruction for the user, where something is wrong.
    """

    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True)
class Result:
    """A check's finding on one rank, with its time in seconds."""

    check: str
    finding: Finding
    seconds: float = 0.0


@dataclass
class Context:
    """Everything that checks read, and the little that they leave for later ones.

    Attributes:
        config: of the run that is to be checked.
        rank, world_size, local_rank: this process among all, from the launch environment.
        monitor: exchange between ranks through the rendezvous store.
        learners: builders of the stages' learners by stage, from a config, a runtime and a token store.
        runtime: None until the ranks have joined.
        resolved: precision that the config comes to; None until it is known.
        measured: values for the last lines, such as tokens per second.
        created: folders that the checks have made, to be removed.
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
        """The device of this rank: that of the runtime, or the one that it would choose."""
        import torch

        if self.runtime is not None:
            return self.runtime.device
        return torch.device("cuda", self.local_rank) if has_gpu() else torch.device("cpu")


@dataclass(frozen=True)
class Check:
    """A named check.

    Attributes:
        name: as the table shows it.
        function: the check itself.
        collective: all ranks run it together, after they have met; skipped once a collective check has raised on a rank.
        needs_runtime: skipped where the ranks could not join.
        limit: time limit in seconds.
    """

    name: str
    function: Callable[[Context], Finding]
    collective: bool = False
    needs_runtime: bool = False
    limit: float = LIMIT

    @property
    def is_quick(self) -> bool:
        """It computes nothing, and needs no other rank."""
        return self.limit <= QUICK and not self.collective and not self.needs_runtime


def ok(found: str) -> Finding:
    return Finding(Status.OK, found)


def warning(found: str, fix: str) -> Finding:
    return Finding(Status.WARNING, found, fix)


def failure(found: str, fix: str) -> Finding:
    return Finding(Status.FAILURE, found, fix)


def skipped(reason: str) -> Finding:
    return Finding(Status.SKIPPED, reason)


def has_gpu() -> bool:
    """True where a run would compute on a GPU; False also where there is one that it would refuse."""
    from ulmfit_dist.distributed.devices import uses_gpu

    try:
        return uses_gpu()
    except UserError:
        return False


def run_checks(checks: list[Check], context: Context) -> list[Result]:
    """Run checks in order on this rank, collective ones with all others; each result is published as it comes."""
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
            return Result(check.name, skipped(f"not tried: {broken}"))
        if check.needs_runtime and context.runtime is None:
            return Result(check.name, skipped("not tried: the ranks have not joined"))
        monitor.restart_clock()
        try:
            finding = check.function(context)
        except Exception as error:
            finding = _finding_of(error)
            if check.collective and context.world_size > 1:
                monitor.broken = f"'{check.name}' failed on rank {context.rank}"
    return Result(check.name, finding, time.monotonic() - started)


def _finding_of(error: Exception) -> Finding:
    """A failure; a UserError has its fix behind its last colon."""
    message = " ".join(f"{error}".split())[:600]
    if isinstance(error, UserError):
        found, _, fix = message.rpartition(": ")
        return failure(found or message, fix)
    return failure(f"{type(error).__name__}: {message}", "search for the message in docs/troubleshooting.md, or report it")
