"""Where the time of training goes, by laps.

The end of a lap says what it was spent on. On a GPU laps are read from CUDA events, and only when somebody asks: in between
nothing waits for the device. Exchanges between ranks lie within other work, so they are laps of their own, and what came
before them counts for whatever ends next.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

PARTS = ("data", "forward", "backward", "communication", "optimizer", "checkpoint")
"""What a step of training spends its time on. Nothing is counted twice."""

MOST_MARKS = 10_000
"""Laps that are kept until they are added up, where nobody asks for the times."""


class Laps:
    """A stopwatch of one rank.

    Args:
        device: whose time is taken.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str | None, Any]] = []
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._waiting = 0.0  # seconds whose lap is not over yet
        self._saving = False

    def start(self) -> None:
        """From here on time counts, until `stop`."""
        self._marks, self._waiting = [(None, self._now())], 0.0

    def end(self, part: str | None) -> None:
        """A lap ends here; None: what it was spent on is what the next one is."""
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
            self.start()
        self._saving = True
        yield
        self._saving = False
        self.end("checkpoint")
        if not is_on:
            self.stop()

    def stop(self) -> None:
        """From here on time does not count, as in a validation."""
        self._add_up()
        self._marks = []

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        self._add_up()
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def _add_up(self) -> None:
        if not self._marks:
            return
        if self._on_gpu:
            self._marks[-1][1].synchronize()
        for (_, begin), (part, end) in pairwise(self._marks):
            seconds = begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin
            if part is None:
                self._waiting += seconds
            elif part == "communication":
                self._seconds[part] += seconds
            else:
                self._seconds[part] += seconds + self._waiting
                self._waiting = 0.0
        self._marks = self._marks[-1:]

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
