"""Time of training by laps.

The end of a lap names what it was spent on. On a GPU laps are read from CUDA events: `take` returns the events so far, and
reading them later, when the device has passed them, waits for nothing. Exchanges between ranks lie within other work, so
they are laps of their own, and what came before them counts for whatever ends next.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

PARTS = ("data", "forward", "backward", "communication", "optimizer", "checkpoint")
"""What a step of training spends its time on. Nothing is counted twice."""

MOST_MARKS = 10_000
"""Laps that are kept until they are added up, where nobody asks for the times."""

Mark = tuple[str | None, Any]
"""The end of a lap: what it was spent on (None: the same as the next one), and its time or CUDA event."""


@dataclass
class Spent:
    """Seconds of laps.

    Attributes:
        parts: by what they were spent on.
        training: of those between `StepTimer.start` and `StepTimer.stop`: without checkpoints after an epoch.
    """

    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    training: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent({part: self.parts[part] + other.parts[part] for part in PARTS}, self.training + other.training)


@dataclass(frozen=True)
class TimedIntervals:
    """Laps whose seconds are read later.

    Attributes:
        before: what is read already.
        segments: marks without a gap between them, and whether that is training.
    """

    before: Spent
    segments: Sequence[tuple[bool, list[Mark]]]

    def read(self) -> Spent:
        """The seconds; on a GPU this waits for the last lap, unless the device has passed it."""
        spent = self.before
        for is_training, marks in self.segments:
            spent += _spent_between(marks, is_training)
        return spent


class StepTimer:
    """A stopwatch of one rank.

    Args:
        device: the device whose time is taken.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: list[Mark] = []
        self._before, self._segments = Spent(), list[tuple[bool, list[Mark]]]()
        self._training, self._saving = False, False

    def start(self, is_training: bool = True) -> None:
        """Count time from here on, until `stop`."""
        self._marks, self._training = [(None, self._now())], is_training

    def end(self, part: str | None) -> None:
        """End a lap here; None: what it was spent on is what the next one is."""
        if self._marks:
            self._marks.append((part, self._now()))
        if len(self._marks) > MOST_MARKS:
            self._add_up()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Around what waits for other ranks; within a checkpoint that is the checkpoint's time."""
        if not self._saving:
            self.end(None)
        yield
        if not self._saving:
            self.end("communication")

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Around the saving of a checkpoint, in an epoch or after it."""
        is_on = bool(self._marks)
        if is_on:
            self.end("optimizer")
        else:
            self.start(is_training=False)
        self._saving = True
        yield
        self._saving = False
        self.end("checkpoint")
        if not is_on:
            self.stop()

    def stop(self) -> None:
        """Count no time from here on, as in a validation."""
        self._close(len(self._marks) - 1)
        self._marks = []

    def take(self) -> TimedIntervals:
        """The laps since the last call. A lap whose purpose is not known yet is left to the next call."""
        self._close(_last_known(self._marks))
        taken = TimedIntervals(self._before, self._segments)
        self._before, self._segments = Spent(), []
        return taken

    def _close(self, last: int) -> None:
        """Cut a segment off the marks, up to the mark of this number; what follows begins there."""
        if last > 0:
            self._segments.append((self._training, self._marks[: last + 1]))
            self._marks = self._marks[last:]

    def _add_up(self) -> None:
        """Read all marks but the younger half, which the device may not have passed."""
        self._close(_last_known(self._marks[: len(self._marks) // 2 + 1]))
        self._before = TimedIntervals(self._before, self._segments).read()
        self._segments = []

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _last_known(marks: Sequence[Mark]) -> int:
    """The number of the last mark whose lap, and all before it, have a known purpose."""
    last, is_known = 0, True
    for number, (part, _) in enumerate(marks[1:], 1):
        is_known = part is not None and (is_known or part != "communication")
        last = number if is_known else last
    return last


def _spent_between(marks: Sequence[Mark], is_training: bool) -> Spent:
    """The seconds of the laps between these marks."""
    spent, waiting = Spent(), 0.0
    end = marks[-1][1]
    if not isinstance(end, float):
        end.synchronize()  # returns at once if the device has passed it
    for (_, begin), (part, end) in pairwise(marks):
        seconds = end - begin if isinstance(end, float) else begin.elapsed_time(end) / 1000
        if part is None:
            waiting += seconds
        elif part == "communication":
            spent.parts[part] += seconds
        else:
            spent.parts[part] += seconds + waiting
            waiting = 0.0
        spent.training += seconds if is_training else 0.0
    return spent
