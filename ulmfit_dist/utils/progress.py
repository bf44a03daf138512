"""Progress on rank 0: a bar on a terminal, and log lines elsewhere, such as in the output of a batch job.

Both go to standard error, so that standard output contains only the tables. A line is printed at each tenth of the steps, at
least `MIN_LINE_SECONDS` and at most `LINE_SECONDS` after the last one. The trade-off: the log of a slow run has no fixed
number of lines.
"""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from ulmfit_dist.utils.formatting import duration
from ulmfit_dist.utils.log import is_quiet

LINE_SECONDS = 60.0
"""Longest interval between two lines, in seconds."""
MIN_LINE_SECONDS = 5.0
"""Shortest interval between two lines, in seconds."""


class Progress:
    """Progress of a loop, as a context manager. The bar is erased at its end.

    Args:
        label: name of the work.
        total: number of steps.
        shown: whether to show it at all, such as on rank 0 only.
        unit: unit that is counted in addition to steps, and shown per second.
        first: number of steps that are already done.
    """

    def __init__(self, label: str, total: int, shown: bool = True, unit: str = "tokens", first: int = 0):
        console = Console(stderr=True)
        self._label, self._total, self._unit = label, total, unit
        self._done, self._first, self._counted = first, first, 0
        self._started = self._last_line = time.perf_counter()
        self._tenth = self._tenths()
        shown = shown and not is_quiet()
        self._has_bar, self._has_lines = shown and console.is_terminal, shown and not console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[details]}"))
        self._bar = RichProgress(*columns, console=console, transient=True, disable=not self._has_bar)
        self._task = self._bar.add_task(label, total=total, completed=first, details="")

    @property
    def is_shown(self) -> bool:
        """True if a bar or lines are shown, for callers with expensive details."""
        return self._has_bar or self._has_lines

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, steps: int = 1, counted: int = 0, loss: float | None = None, clock: str | None = None) -> None:
        """Advance by some steps.

        Args:
            steps: number of steps.
            counted: number of units in them.
            loss: training loss to show.
            clock: elapsed and remaining time as text; None: those of this loop.
        """
        self._done += steps
        self._counted += counted
        if self._has_bar:
            self._bar.update(self._task, completed=self._done, details=", ".join(self._details(loss, clock)))
        elif self._has_lines and self._is_line_due():
            details = ", ".join([f"{self._label}: {self._done:,} of {self._total:,}", *self._details(loss, clock)])
            with suppress(OSError):  # a closed standard error must not stop the run
                print(details, file=sys.stderr, flush=True)

    def _details(self, loss: float | None, clock: str | None) -> list[str]:
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        share = (self._done - self._first) / max(1, self._total - self._first)
        clock = clock or f"{duration(elapsed)} elapsed, {duration(elapsed / share - elapsed) if share else '?'} left"
        loss_part = [] if loss is None else [f"loss {loss:.4f}"]
        rate = [f"{self._counted / elapsed:,.0f} {self._unit}/s"] if self._counted else []
        return [*loss_part, *rate, clock]

    def _is_line_due(self) -> bool:
        now = time.perf_counter()
        waited, tenth = now - self._last_line, self._tenths()
        if waited < MIN_LINE_SECONDS or (tenth == self._tenth and waited < LINE_SECONDS):
            return False
        self._last_line, self._tenth = now, tenth
        return True

    def _tenths(self) -> int:
        return 10 * self._done // max(1, self._total)
