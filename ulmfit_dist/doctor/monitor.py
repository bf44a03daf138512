"""Exchange between the ranks of a doctor that must never hang.

Nothing here goes through the process group, which is what is to be checked: results, meetings and heartbeats are keys of the
rendezvous store. Two threads watch: one writes this rank's heartbeat and reads the others', and may block where the store
does; the other compares clocks, and ends the process with a report once a check has exceeded its limit, a rank has fallen
silent, or the store has. A stopped process writes no heartbeats, while a slow one does, so slow ranks are waited for.
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
"""Seconds without a heartbeat after which a rank counts as hanging."""
RANKS_PER_SECOND = 64
"""Heartbeats that a rank reads per second, at most."""
PATIENCE = 8.0
"""Seconds for the last exchange with a store that may not answer, and for the report of another rank."""

Report = Callable[[dict[int, list[Result]]], None]


class Monitor:
    """One rank's view of the others, through the rendezvous store.

    Args:
        rank: this rank.
        names: of all ranks, for messages.
        stores: two connections to the store; none for one process.
        report: prints the results of all ranks, once this process must end early.

    Attributes:
        broken: the reason why no collective check can be tried any more; None while all is well.
        lost: returns the rank that has died, by the runtime's own watch; None while all are there.
    """

    def __init__(self, rank: int, names: list[str], stores: list[Store], report: Report):
        self.rank, self.names, self.world_size = rank, names, len(names)
        self._store: Store | None = stores[0] if stores else None
        self._beats: Store | None = stores[1] if stores else None
        self._report = report
        self.broken: str | None = None
        self.lost: Callable[[], str | None] = lambda: None
        self._results: list[Result] = []
        self._check, self._limit, self._deadline, self._met = "", 0.0, float("inf"), 0
        now = time.monotonic()
        self._seen = {other: ("", now) for other in range(self.world_size) if other != rank}
        self._store_answered, self._aborted_by, self._is_over = now, "", threading.Event()
        threading.Thread(target=self._judge, name="doctor", daemon=True).start()
        self._heartbeat = threading.Thread(target=self._beat, name="doctor's heartbeat", daemon=True)
        if self._beats is not None:
            self._heartbeat.start()

    @contextmanager
    def running(self, check: str, limit: float) -> Iterator[None]:
        """Around a check: its name for messages, and its limit in seconds, which counts from `restart_clock`."""
        self._check, self._limit = check, limit
        yield
        self._deadline = float("inf")

    def restart_clock(self) -> None:
        self._deadline = time.monotonic() + self._limit

    def publish(self, result: Result) -> None:
        """Let other ranks read a result, also should this one hang later."""
        self._results.append(result)
        if self._store is not None:
            with suppress(RuntimeError):  # the judging thread reports a store that does not answer
                self._store.set(f"results/{self.rank}", _encode(self._results))

    def meet(self, purpose: str) -> str | None:
        """Wait for all ranks; returns why collectives are no longer possible, on all ranks alike, or None."""
        return next((reason for reason in self.exchange(purpose, self.broken) if reason is not None), None)

    def exchange(self, purpose: str, value: Any) -> list[Any]:
        """The values of all ranks, by rank; values are JSON. Every rank must call it, in the same order."""
        if self._store is None:
            return [value]
        self._met += 1
        keys = [f"meeting {self._met} {purpose}/{other}" for other in range(self.world_size)]
        self._store.set(keys[self.rank], json.dumps(value))
        while not self._store.check(keys):
            time.sleep(0.02)
        return [json.loads(read) for read in self._store.multi_get(keys)]

    def finish(self) -> dict[int, list[Result]]:
        """The results of all ranks, on every rank. Collective."""
        self.exchange("finish", None)
        return self._published()

    def reported(self) -> None:
        """Rank 0 has printed the report: let the others end, which wait for it here. Collective."""
        self.exchange("reported", None)
        self._is_over.set()
        if self._store is None:
            return
        self._heartbeat.join(PATIENCE)
        if self.rank != 0:
            self._store.set(f"left/{self.rank}", "")
            return
        deadline = time.monotonic() + PATIENCE  # rank 0 may hold the store: it leaves last
        while not self._store.check([f"left/{other}" for other in self._seen]) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _published(self) -> dict[int, list[Result]]:
        found = {self.rank: self._results}
        for other in range(self.world_size):
            if self._store is not None and other != self.rank and self._store.check([f"results/{other}"]):
                found[other] = _decode(self._store.get(f"results/{other}"))
        return found

    def _beat(self) -> None:
        """Write this rank's heartbeat each second, and read those of the others."""
        assert self._beats is not None
        number = 0
        while not self._is_over.wait(max(1.0, self.world_size / RANKS_PER_SECOND)):
            number += 1
            with suppress(RuntimeError):  # the connection is gone: the clock of the store's last answer shows it
                self._beats.set(f"beat/{self.rank}", f"{number}|{self._check}")
                beats = self._beats.multi_get([f"beat/{other}" for other in self._seen])
                now = self._store_answered = time.monotonic()
                for other, read in zip(list(self._seen), beats, strict=True):
                    if read.decode() != self._seen[other][0]:
                        self._seen[other] = (read.decode(), now)
                if self._beats.check(["aborted"]):
                    self._aborted_by = self._beats.get("aborted").decode()

    def _judge(self) -> None:
        while not self._is_over.wait(0.5):
            if (problem := self._problem(time.monotonic())) is not None:
                self._give_up(problem)

    def _silent(self, now: float) -> list[int]:
        if self._beats is None or now - self._store_answered > SILENCE / 2:
            return []  # nothing is known of the others
        return [other for other, (_, changed) in self._seen.items() if now - changed > SILENCE]

    def _problem(self, now: float) -> Finding | None:
        """The reason to end this process, or None."""
        if silent := self._silent(now):
            return failure(
                self._describe_silence(silent), "look at these processes: suspended, deadlocked, or out of memory"
            )
        if self._beats is not None and now - self._store_answered > SILENCE:
            return failure(
                f"{self.names[0]}, or its launcher, has not answered for {SILENCE:.0f} s",
                "look at this process: suspended, deadlocked, or gone",
            )
        if (lost := self.lost()) is not None:
            return failure(lost, "look at the output of this rank, and at the memory of its machine")
        if self._aborted_by:
            return skipped(f"ended early: {self._aborted_by}")
        if now > self._deadline:
            others = self._elsewhere()
            where = f"; elsewhere: {others}" if others else ""
            return failure(f"no end within {self._limit:.0f} s on {self.names[self.rank]}{where}", FIXES_OF_HANGS)
        return None

    def _describe_silence(self, silent: list[int]) -> str:
        described = [f"{self.names[other]} in '{self._seen[other][0].partition('|')[2]}'" for other in silent[:4]]
        more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
        return f"no heartbeat for {SILENCE:.0f} s from {', '.join(described)}{more}"

    def _elsewhere(self) -> str:
        """Ranks that are not in this rank's check, and where they are."""
        checks = {other: beat.partition("|")[2] for other, (beat, _) in self._seen.items()}
        return ", ".join(f"rank {other} in '{check}'" for other, check in checks.items() if check != self._check)

    def _give_up(self, problem: Finding) -> None:
        """Report what is known, and end this process, whatever its main thread is waiting for."""
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
            time.sleep(1)  # until the others have read it: they end before a store that this rank may hold
        if problem.status is Status.FAILURE:
            print(f"ulmfit-dist: error: doctor: '{self._check}': {problem.found}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(USER_ERROR)

    def _last_exchange(self, problem: Finding, known: dict[int, list[Result]], is_reporter: bool) -> None:
        """Read what others have published; who does not report waits, since a launcher ends all ranks with the first."""
        if self._beats is None:
            return
        with suppress(RuntimeError):
            self._beats.set(f"results/{self.rank}", _encode(self._results))
            if problem.status is Status.FAILURE:
                self._beats.set("aborted", problem.found)
            if is_reporter:
                time.sleep(1.5)  # for other ranks that have found the same
                for other in self._seen:
                    if self._beats.check([f"results/{other}"]):
                        known[other] = _decode(self._beats.get(f"results/{other}"))
            while not is_reporter and not self._beats.check(["reported"]):
                time.sleep(0.1)


FIXES_OF_HANGS = (
    "a collective that never ends: look at the ranks that are elsewhere, and at firewalls and NCCL_SOCKET_IFNAME or "
    "GLOO_SOCKET_IFNAME; a file system that does not answer: look at its server"
)


def _encode(results: list[Result]) -> str:
    return json.dumps([asdict(result) for result in results])


def _decode(content: bytes) -> list[Result]:
    read = json.loads(content)
    return [
        Result(
            item["check"],
            Finding(Status(item["finding"]["status"]), item["finding"]["found"], item["finding"]["fix"]),
            item["seconds"],
        )
        for item in read
    ]
