"""A progress bar on rank 0, and only where somebody watches: not in a batch job's log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A bar as a context manager; it leaves nothing behind.

    Args:
        label: what is being done.
        total: steps until it is done.
        shown: whether to show it at all, so that callers need not ask for the rank.
        unit: what is counted beside the steps, and shown per second.
    """

    def __init__(self, label: str, total: int, shown: bool = True, unit: str = "tokens"):
        console = Console(stderr=True)
        rate = TextColumn("{task.fields[rate]}")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
        self._unit, self._counted, self._started = unit, 0, time.perf_counter()
        self._bar = RichProgress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
        self._task = self._bar.add_task(label, total=total, rate="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, steps: int = 1, counted: int = 0) -> None:
        """Some steps further, and that many of what is counted beside them."""
        self._counted += counted
        rate = self._counted / max(time.perf_counter() - self._started, 1e-9)
        self._bar.update(self._task, advance=steps, rate=f"{rate:,.0f} {self._unit}/s" if self._counted else "")
