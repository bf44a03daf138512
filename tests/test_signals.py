"""Signals, and the news of a rank that is gone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ulmfit_dist.distributed import heartbeat, signals
from ulmfit_dist.distributed.heartbeat import HeartbeatMonitor
from ulmfit_dist.errors import ResumableInterrupt


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_stops_at_once_where_there_is_nothing_to_lose(number: signal.Signals):
    before = signal.getsignal(number)
    with pytest.raises(ResumableInterrupt, match=f"stopped by {number.name}"), signals.at_once():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_scheduler_that_repeats_itself_does_not_disturb_the_end():
    with pytest.raises(ResumableInterrupt, match="stopped by SIGTERM"), signals.at_once():  # noqa: PT012
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGUSR1)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_a_signal_is_noted_while_training_and_not_lost_at_its_end():
    with pytest.raises(ResumableInterrupt, match="stopped by SIGUSR1"), signals.when_ready() as stop:  # noqa: PT012
        assert stop.signal is None
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal is signal.SIGUSR1
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL


HASTE = """
import os, signal, time
from ulmfit_dist.distributed import signals

with signals.when_ready():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.{second})
    time.sleep(5)
"""


def test_what_is_saved_is_not_asked_to_stop_again():
    with signals.at_once():
        before = [signal.getsignal(number) for number in signals.SIGNALS]
        with signals.saved():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_a_process_that_exits_next_keeps_ignoring_a_scheduler():
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
def test_after_a_first_sigint_the_next_signal_ends_the_process(second: signal.Signals):
    assert subprocess.run([sys.executable, "-c", HASTE.format(second=second.name)], timeout=20).returncode == -second


def test_outside_the_main_thread_signals_are_left_alone():
    def train() -> None:
        with signals.at_once(), signals.when_ready() as stop:
            seen.append(stop.signal)

    seen: list[object] = []
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [None]


class Ranks:
    """Rank 0 and two others, watching each other over loopback, and what each was told when it did not end by itself."""

    def __init__(self) -> None:
        door, port, secret = heartbeat.open_listener(all_here=True)
        address = ("127.0.0.1", port, secret, "rank 0")
        main = threading.Thread(target=lambda: self.of.update({0: heartbeat.watch_from_main(door, address, 3)}))
        self.of: dict[int, HeartbeatMonitor] = {}
        self.told: dict[int, str] = {}
        main.start()
        for rank in (1, 2):
            self.of[rank] = heartbeat.connect(f"rank {rank}", address)
        main.join()
        for rank, member in self.of.items():
            member.give_up = lambda message, rank=rank: self.told.update({rank: message})


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    monkeypatch.setattr(heartbeat, "GRACE", 0.2)
    return Ranks()


def test_a_rank_that_ends_without_a_word_is_named_to_all(ranks: Ranks):
    ranks.of[2]._left.set()  # it is dead, and watches no more
    for connection in ranks.of[2].peers:
        connection.shutdown(socket.SHUT_RDWR)
    for rank in (0, 1):
        assert ranks.of[rank].loss(patience=5) == f"rank 2 {heartbeat.KILLED}"
    time.sleep(0.5)
    assert ranks.told == dict.fromkeys((0, 1), f"rank 2 {heartbeat.KILLED}")


def test_a_rank_that_ends_in_time_is_not_ended(ranks: Ranks):
    ranks.of[2].leave("ValueError: no")
    for rank in (0, 1):
        assert ranks.of[rank].loss(patience=5) == "rank 2 failed with ValueError: no"
        ranks.of[rank].leave("what followed from it")
    time.sleep(0.5)
    assert ranks.told == {}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_ranks_that_leave_in_order_are_not_missed(ranks: Ranks, order: tuple[int, ...]):
    for rank in order:
        ranks.of[rank].leave()
        time.sleep(0.05)
    assert [ranks.of[rank].loss() for rank in order] == [None] * 3


def test_nobody_without_the_secret_is_let_in():
    door, port, secret = heartbeat.open_listener(all_here=True)
    address = ("127.0.0.1", port, secret, "rank 0")
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b'{"who": "rank 1", "secret": "guessed"}\n')
        found: list[HeartbeatMonitor] = []
        main = threading.Thread(target=lambda: found.append(heartbeat.watch_from_main(door, address, 2)))
        main.start()
        other = heartbeat.connect("rank 1", address)
        main.join(5)
        assert [*found[0].peers.values()] == ["rank 1"]
        other.leave()
        found[0].leave()
