"""Signals that stop a run: SIGTERM and SIGUSR1 from a scheduler, and SIGINT from a keyboard.

Outside of training the run stops at once (`at_once`). During training it first finishes its step and saves, so a signal is
only recorded (`when_ready`). The trade-off: a long step delays the exit. SIGINT followed by SIGINT or SIGTERM therefore
terminates the process immediately, without saving.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ulmfit_dist.errors import ResumableInterrupt

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
"""Handled signals that this platform has."""


@dataclass
class ShutdownRequest:
    """First stop signal that this process has received; None if there was none."""

    signal: signal.Signals | None = None


@contextmanager
def at_once(ends_process: bool = False) -> Iterator[None]:
    """Raise `ResumableInterrupt` on a signal, and ignore repeated signals of a scheduler.

    Args:
        ends_process: whether the process exits after this block: signals of a scheduler are then ignored from its end.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for later in SIGNALS:
            terminates = later == signal.SIGINT or (later == signal.SIGTERM and number == signal.SIGINT)
            signal.signal(later, signal.SIG_DFL if terminates else signal.SIG_IGN)
        raise ResumableInterrupt(_message(number))

    with _handling(stop, ends_process):
        yield


@contextmanager
def when_ready() -> Iterator[ShutdownRequest]:
    """Record a signal in the `ShutdownRequest`, which the training loop polls."""
    request = ShutdownRequest()

    def record(number: int, frame: FrameType | None) -> None:
        request.signal = request.signal or signal.Signals(number)
        if number == signal.SIGINT:
            for later in (signal.SIGINT, signal.SIGTERM):
                signal.signal(later, signal.SIG_DFL)

    with _handling(record):
        yield request
    if request.signal is not None:  # it arrived after the last poll
        raise ResumableInterrupt(_message(request.signal))


@contextmanager
def saved() -> Iterator[None]:
    """Ignore signals of a scheduler while the run exits, with its progress saved; SIGINT terminates the process."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    ignore_requests()
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def ignore_requests() -> None:
    """Ignore signals of a scheduler from now on; SIGINT terminates the process. No effect outside the main thread."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)


def _message(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}: run the same command again to resume"


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any], ends_process: bool = False) -> Iterator[None]:
    """Install a handler for all signals in a block; outside the main thread, where Python forbids it, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        if ends_process:
            ignore_requests()
        else:
            for number, earlier in before.items():
                signal.signal(number, earlier)
