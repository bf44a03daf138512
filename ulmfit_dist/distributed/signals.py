"""Signals that ask a run to stop: SIGTERM and SIGUSR1, as schedulers send them, and SIGINT from a keyboard.

While there is nothing to lose the run stops at once. During training it first finishes its step and saves, so there a signal
is only noted (`when_ready`). Who sends SIGINT and then SIGINT or SIGTERM is in a hurry: that ends the process at once.
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


@dataclass
class ShutdownRequest:
    """Whether this process was asked to stop, and by which signal."""

    signal: signal.Signals | None = None


@contextmanager
def at_once(ends_process: bool = False) -> Iterator[None]:
    """A signal raises `ResumableInterrupt` where the process is; a scheduler's repetition of it is ignored.

    Args:
        ends_process: whether the process exits after this block: then requests are ignored from there on.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for later in SIGNALS:
            is_hasty = later == signal.SIGINT or (later == signal.SIGTERM and number == signal.SIGINT)
            signal.signal(later, signal.SIG_DFL if is_hasty else signal.SIG_IGN)
        raise ResumableInterrupt(_message(number))

    with _handling(stop, ends_process):
        yield


@contextmanager
def when_ready() -> Iterator[ShutdownRequest]:
    """A signal is noted in the `ShutdownRequest`, for whoever trains to look at."""
    request = ShutdownRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = request.signal or signal.Signals(number)
        if number == signal.SIGINT:
            for hasty in (signal.SIGINT, signal.SIGTERM):
                signal.signal(hasty, signal.SIG_DFL)

    with _handling(note):
        yield request
    if request.signal is not None:  # too late for whoever trained to see it
        raise ResumableInterrupt(_message(request.signal))


@contextmanager
def saved() -> Iterator[None]:
    """All is saved, and the run takes its leave: a scheduler need not ask again, and a keyboard ends the process at once."""
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
    """Ignore a scheduler's signals from here on, while SIGINT ends the process at once; only in the main thread."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)


def _message(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}: the same command goes on from there"


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any], ends_process: bool = False) -> Iterator[None]:
    """Handle the signals so for a while; outside the main thread, which alone may, they are left as they are."""
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
