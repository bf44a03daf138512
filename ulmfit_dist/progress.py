"""A progress bar on rank 0, and only where somebody watches: not in a batch job's log."""

from __future__ import annotations

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
    """

    def __init__(self, label: str, total: int, shown: bool = True):
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = RichProgress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal))
        self._task = self._bar.add_task(label, total=total)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def advance(self, steps: int = 1, label: str | None = None) -> None:
        """Some steps further, under a new label if one is given."""
        self._bar.update(self._task, advance=steps, description=label)
