"""Time of training steps, by intervals.

The end of an interval names the part of the step that it belongs to. On a GPU intervals lie between CUDA events: `take`
returns the events so far, and reading them later, after the device has passed them, does not block. Exchanges between ranks
happen inside of other parts, so they are intervals of their own, and an interval before an exchange counts for the part that
ends next. The trade-off: times on a GPU are known a step late.
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
"""Parts of a training step. No time is counted twice."""

MAX_MARKS = 10_000
"""Number of marks after which intervals are added up, if `take` is not called before."""

Mark = tuple[str | None, Any]
"""End of an interval: its part (None: the same part as the next interval), and its time or CUDA event."""


@dataclass
class Spent:
    """Sums over intervals, in seconds.

    Attributes:
        parts: seconds by part.
        training: seconds between `StepTimer.start` and `StepTimer.stop`, without checkpoints after an epoch.
    """

    parts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    training: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent({part: self.parts[part] + other.parts[part] for part in PARTS}, self.training + other.training)


@dataclass(frozen=True)
class TimedIntervals:
    """Intervals whose durations are read later.

    Attributes:
        before: sums that are read already.
        segments: for each run of adjacent marks, whether it is training, and the marks.
    """

    before: Spent
    segments: Sequence[tuple[bool, list[Mark]]]

    def read(self) -> Spent:
        """Return the sums. On a GPU this blocks until the device has passed the last mark."""
        spent = self.before
        for is_training, marks in self.segments:
            spent += _sum_intervals(marks, is_training)
        return spent


class StepTimer:
    """Stopwatch of one rank.

    Args:
        device: device whose time is measured.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: list[Mark] = []
        self._before, self._segments = Spent(), list[tuple[bool, list[Mark]]]()
        self._training, self._saving = False, False

    def start(self, is_training: bool = True) -> None:
        """Start to count time, until `stop`."""
        self._marks, self._training = [(None, self._now())], is_training

    def end(self, part: str | None) -> None:
        """End an interval; None: it belongs to the same part as the next one."""
        if self._marks:
            self._marks.append((part, self._now()))
        if len(self._marks) > MAX_MARKS:
            self._add_up()

    @contextmanager
    def exchange(self) -> Iterator[None]:
        """Count a block as communication; inside of `checkpoint` it counts as checkpoint."""
        if not self._saving:
            self.end(None)
        yield
        if not self._saving:
            self.end("communication")

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Count a block as checkpoint, in an epoch or after it."""
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
        """Stop to count time, as during validation."""
        self._close(len(self._marks) - 1)
        self._marks = []

    def take(self) -> TimedIntervals:
        """Return the intervals since the last call. An interval whose part is still unknown is left for the next call."""
        self._close(_last_known(self._marks))
        taken = TimedIntervals(self._before, self._segments)
        self._before, self._segments = Spent(), []
        return taken

    def _close(self, last: int) -> None:
        """Move the marks up to this index into a segment; the mark at the index begins the next one."""
        if last > 0:
            self._segments.append((self._training, self._marks[: last + 1]))
            self._marks = self._marks[last:]

    def _add_up(self) -> None:
        """Read all marks but the newer half, which the device may not have passed."""
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
    """Return the index of the last mark up to which the part of every interval is known."""
    last, is_known = 0, True
    for i, (part, _) in enumerate(marks[1:], 1):
        is_known = part is not None and (is_known or part != "communication")
        last = i if is_known else last
    return last


def _sum_intervals(marks: Sequence[Mark], is_training: bool) -> Spent:
    """Return the seconds between these marks, by part."""
    spent, pending = Spent(), 0.0
    end = marks[-1][1]
    if not isinstance(end, float):
        end.synchronize()  # returns at once if the device has passed it
    for (_, begin), (part, end) in pairwise(marks):
        seconds = end - begin if isinstance(end, float) else begin.elapsed_time(end) / 1000
        if part is None:
            pending += seconds
        elif part == "communication":
            spent.parts[part] += seconds
        else:
            spent.parts[part] += seconds + pending
            pending = 0.0
        spent.training += seconds if is_training else 0.0
    return spent
