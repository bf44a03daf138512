"""Tests of signals."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from ulmfit_dist.distributed import signals
from ulmfit_dist.errors import ResumableInterrupt


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_stops_at_once_outside_of_training(number: signal.Signals):
    before = signal.getsignal(number)
    with pytest.raises(ResumableInterrupt, match=f"stopped by {number.name}"), signals.at_once():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_repeated_signals_of_a_scheduler_are_ignored():
    with pytest.raises(ResumableInterrupt, match="stopped by SIGTERM"), signals.at_once():  # noqa: PT012
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR1)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_signal_is_recorded_during_training_and_raised_at_its_end():
    with pytest.raises(ResumableInterrupt, match="stopped by SIGUSR1"), signals.when_ready() as request:  # noqa: PT012
        assert request.signal is None
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert request.signal is signal.SIGUSR1
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL


SIGINT_TWICE = """
import os, signal, time
from ulmfit_dist.distributed import signals

with signals.when_ready():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.{second})
    time.sleep(5)
"""


def test_signals_are_ignored_after_saving():
    with signals.at_once():
        before = [signal.getsignal(number) for number in signals.SIGNALS]
        with signals.saved():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_a_process_that_exits_next_ignores_signals_of_a_scheduler():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    try:
        with signals.at_once(ends_process=True):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == [signal.SIG_IGN] * 2
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        for number, handler in zip(signals.SIGNALS, before, strict=True):
            signal.signal(number, handler)


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_after_sigint_terminates_the_process(second: signal.Signals):
    assert subprocess.run([sys.executable, "-c", SIGINT_TWICE.format(second=second.name)], timeout=20).returncode == -second


def test_handlers_stay_unchanged_outside_the_main_thread():
    def train() -> None:
        with signals.at_once(), signals.when_ready() as request:
            seen.append(request.signal)

    seen: list[object] = []
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [None]
