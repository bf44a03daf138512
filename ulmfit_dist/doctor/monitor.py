"""Exchange between the ranks of `doctor`, with time limits, so that it never hangs.

Nothing here uses the process group, which is under test: results, barriers and heartbeats are keys of the rendezvous store.
Two threads run. One writes this rank's heartbeat and reads the others', and may block with the store. The other compares
clocks, and ends the process with a report when a check exceeds its limit, or a rank or the store stops responding. A
suspended process writes no heartbeats, a slow one does, so slow ranks have time. The trade-off: one key per rank and second.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ulmfit_dist.doctor.checks import Finding, Result, Status, failure, skipped
from ulmfit_dist.errors import USER_ERROR

if TYPE_CHECKING:
    from torch.distributed import Store

SILENCE = 20.0
"""Time without a heartbeat after which a rank counts as hanging, in seconds."""
RANKS_PER_SECOND = 64
"""Largest number of heartbeats that a rank reads per second."""
PATIENCE = 8.0
"""Time limit of the last exchange with a store that may not respond, and of another rank's report, in seconds."""

Report = Callable[[dict[int, list[Result]]], None]
"""Function that prints the results of all ranks, by rank."""


class Monitor:
    """One rank's view of the others, through the rendezvous store.

    Args:
        rank: this rank.
        names: names of all ranks, for messages.
        stores: two connections to the store; empty for one process.
        report: prints the results of all ranks if this process must exit early.

    Attributes:
        broken: reason why collective checks can no longer run; None if they can.
        lost: returns the rank that has died, from the runtime's heartbeat; None if there is none.
    """

    def __init__(self, rank: int, names: list[str], stores: list[Store], report: Report):
        self.rank, self.names, self.world_size = rank, names, len(names)
        self._store: Store | None = stores[0] if stores else None
        self._beats: Store | None = stores[1] if stores else None
        self._report = report
        self.broken: str | None = None
        self.lost: Callable[[], str | None] = lambda: None
        self._results: list[Result] = []
        self._check, self._limit, self._deadline, self._num_exchanges = "", 0.0, float("inf"), 0
        now = time.monotonic()
        self._seen = {other: ("", now) for other in range(self.world_size) if other != rank}
        self._store_answered, self._aborted_by, self._is_over = now, "", threading.Event()
        threading.Thread(target=self._check_limits, name="doctor", daemon=True).start()
        self._heartbeat = threading.Thread(target=self._beat, name="doctor's heartbeat", daemon=True)
        if self._beats is not None:
            self._heartbeat.start()

    @contextmanager
    def running(self, check: str, limit: float) -> Iterator[None]:
        """Set the name and the time limit of a check around it; the limit counts from `restart_clock`, in seconds."""
        self._check, self._limit = check, limit
        yield
        self._deadline = float("inf")

    def restart_clock(self) -> None:
        self._deadline = time.monotonic() + self._limit

    def publish(self, result: Result) -> None:
        """Publish a result, which other ranks can read even if this rank hangs later."""
        self._results.append(result)
        if self._store is not None:
            with suppress(RuntimeError):  # the other thread reports a store that does not respond
                self._store.set(f"results/{self.rank}", _encode(self._results))

    def meet(self, purpose: str) -> str | None:
        """Wait for all ranks. Returns the reason why collectives cannot run, equal on all ranks, or None."""
        return next((reason for reason in self.exchange(purpose, self.broken) if reason is not None), None)

    def exchange(self, purpose: str, value: Any) -> list[Any]:
        """Return the JSON values of all ranks in rank order. Collective: all ranks must make the same calls in order."""
        if self._store is None:
            return [value]
        self._num_exchanges += 1
        keys = [f"exchange {self._num_exchanges} {purpose}/{other}" for other in range(self.world_size)]
        self._store.set(keys[self.rank], json.dumps(value))
        while not self._store.check(keys):
            time.sleep(0.02)
        return [json.loads(content) for content in self._store.multi_get(keys)]

    def finish(self) -> dict[int, list[Result]]:
        """Return the results of all ranks, on every rank. Collective."""
        self.exchange("finish", None)
        return self._published()

    def reported(self) -> None:
        """Wait until rank 0 has printed the report. Collective."""
        self.exchange("reported", None)
        self._is_over.set()
        if self._store is None:
            return
        self._heartbeat.join(PATIENCE)
        if self.rank != 0:
            self._store.set(f"done/{self.rank}", "")
            return
        deadline = time.monotonic() + PATIENCE  # rank 0 may host the store, so it exits last
        while not self._store.check([f"done/{other}" for other in self._seen]) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _published(self) -> dict[int, list[Result]]:
        results = {self.rank: self._results}
        for other in range(self.world_size):
            if self._store is not None and other != self.rank and self._store.check([f"results/{other}"]):
                results[other] = _decode(self._store.get(f"results/{other}"))
        return results

    def _beat(self) -> None:
        """Write this rank's heartbeat every second, and read those of the others."""
        assert self._beats is not None
        number = 0
        while not self._is_over.wait(max(1.0, self.world_size / RANKS_PER_SECOND)):
            number += 1
            with suppress(RuntimeError):  # connection lost, which the time of the store's last response shows
                self._beats.set(f"beat/{self.rank}", f"{number}|{self._check}")
                beats = self._beats.multi_get([f"beat/{other}" for other in self._seen])
                now = self._store_answered = time.monotonic()
                for other, beat in zip(list(self._seen), beats, strict=True):
                    if beat.decode() != self._seen[other][0]:
                        self._seen[other] = (beat.decode(), now)
                if self._beats.check(["aborted"]):
                    self._aborted_by = self._beats.get("aborted").decode()

    def _check_limits(self) -> None:
        """End this process as soon as there is a reason."""
        while not self._is_over.wait(0.5):
            if (problem := self._problem(time.monotonic())) is not None:
                self._give_up(problem)

    def _silent(self, now: float) -> list[int]:
        """Return the ranks without a recent heartbeat; none if the store itself does not respond."""
        if self._beats is None or now - self._store_answered > SILENCE / 2:
            return []
        return [other for other, (_, changed) in self._seen.items() if now - changed > SILENCE]

    def _problem(self, now: float) -> Finding | None:
        """Return the reason to end this process, or None."""
        if silent := self._silent(now):
            return failure(
                self._describe_silence(silent), "check whether these processes are suspended, deadlocked or out of memory"
            )
        if self._beats is not None and now - self._store_answered > SILENCE:
            return failure(
                f"no response from {self.names[0]}, or its launcher, for {SILENCE:.0f} s",
                "check whether this process is suspended, deadlocked or dead",
            )
        if (lost := self.lost()) is not None:
            return failure(lost, "check the output of this rank, and the memory of its machine")
        if self._aborted_by:
            return skipped(f"aborted: {self._aborted_by}")
        if now > self._deadline:
            others = self._in_other_checks()
            rest = f"; in other checks: {others}" if others else ""
            return failure(f"not finished within {self._limit:.0f} s on {self.names[self.rank]}{rest}", FIXES_OF_HANGS)
        return None

    def _describe_silence(self, silent: list[int]) -> str:
        described = [f"{self.names[other]} in '{self._seen[other][0].partition('|')[2]}'" for other in silent[:4]]
        more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
        return f"no heartbeat for {SILENCE:.0f} s from {', '.join(described)}{more}"

    def _in_other_checks(self) -> str:
        """Return the ranks that are in other checks than this one, as text."""
        checks = {other: beat.partition("|")[2] for other, (beat, _) in self._seen.items()}
        return ", ".join(f"rank {other} in '{check}'" for other, check in checks.items() if check != self._check)

    def _give_up(self, problem: Finding) -> None:
        """Report the known results, and end this process, even if its main thread is blocked."""
        silent = set(self._silent(time.monotonic()))
        if self._beats is not None and time.monotonic() - self._store_answered > SILENCE and self.rank != 0:
            silent.add(0)
        self._results.append(Result(self._check, problem))
        known = {self.rank: self._results}
        is_reporter = self.rank == min(set(range(self.world_size)) - silent)
        exchange = threading.Thread(target=self._last_exchange, args=(problem, known, is_reporter), daemon=True)
        exchange.start()
        exchange.join(PATIENCE)
        if is_reporter:
            self._report(dict(known))
        if self._store is not None and is_reporter:
            exchange = threading.Thread(target=self._store.set, args=("reported", "1"), daemon=True)
            exchange.start()
            exchange.join(1)
            time.sleep(1)  # until the others have read it, because this rank may host the store
        if problem.status is Status.FAILURE:
            print(f"ulmfit-dist: error: doctor: '{self._check}': {problem.details}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(USER_ERROR)

    def _last_exchange(self, problem: Finding, known: dict[int, list[Result]], is_reporter: bool) -> None:
        """Read the results of other ranks, or wait for the reporter: a launcher kills all ranks after the first exit."""
        if self._beats is None:
            return
        with suppress(RuntimeError):
            self._beats.set(f"results/{self.rank}", _encode(self._results))
            if problem.status is Status.FAILURE:
                self._beats.set("aborted", problem.details)
            if is_reporter:
                time.sleep(1.5)  # for other ranks with the same problem
                for other in self._seen:
                    if self._beats.check([f"results/{other}"]):
                        known[other] = _decode(self._beats.get(f"results/{other}"))
            while not is_reporter and not self._beats.check(["reported"]):
                time.sleep(0.1)


FIXES_OF_HANGS = (
    "if a collective hangs, check the ranks in other checks, firewalls, and NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME; if a "
    "file system does not respond, check its server"
)
"""Fix for a check that exceeds its time limit."""


def _encode(results: list[Result]) -> str:
    return json.dumps([asdict(result) for result in results])


def _decode(content: bytes) -> list[Result]:
    return [
        Result(
            item["check"],
            Finding(Status(item["finding"]["status"]), item["finding"]["details"], item["finding"]["fix"]),
            item["seconds"],
        )
        for item in json.loads(content)
    ]
