"""Tests of the detection of dead ranks, over loopback."""

import socket
import threading
import time

import pytest

from ulmfit_dist.distributed import heartbeat
from ulmfit_dist.distributed.heartbeat import Address, HeartbeatMonitor


class Ranks:
    """Monitors of three ranks over loopback, and the messages of those that were given up."""

    def __init__(self) -> None:
        listener, port, secret = heartbeat.open_listener(is_single_node=True)
        address = Address("127.0.0.1", port, secret, "rank 0")
        main = threading.Thread(target=lambda: self.of.update({0: heartbeat.accept_peers(listener, address, 3)}))
        self.of: dict[int, HeartbeatMonitor] = {}
        self.given_up: dict[int, str] = {}
        main.start()
        for rank in (1, 2):
            self.of[rank] = heartbeat.connect(f"rank {rank}", address)
        main.join()
        for rank, monitor in self.of.items():
            monitor.give_up = lambda message, rank=rank: self.given_up.update({rank: message})


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    monkeypatch.setattr(heartbeat, "GRACE", 0.2)
    return Ranks()


def test_a_killed_rank_is_named_on_all_others(ranks: Ranks):
    ranks.of[2]._closed.set()  # it is dead, and watches nothing
    for connection in ranks.of[2].peers:
        connection.shutdown(socket.SHUT_RDWR)
    for rank in (0, 1):
        assert ranks.of[rank].loss(patience=5) == f"rank 2 {heartbeat.KILLED}"
    time.sleep(0.5)
    assert ranks.given_up == dict.fromkeys((0, 1), f"rank 2 {heartbeat.KILLED}")


def test_a_rank_that_exits_within_the_grace_period_is_not_given_up(ranks: Ranks):
    ranks.of[2].close("ValueError: no")
    for rank in (0, 1):
        assert ranks.of[rank].loss(patience=5) == "rank 2 failed with ValueError: no"
        ranks.of[rank].close("a consequence")
    time.sleep(0.5)
    assert ranks.given_up == {}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_an_orderly_exit_is_no_loss(ranks: Ranks, order: tuple[int, ...]):
    for rank in order:
        ranks.of[rank].close()
        time.sleep(0.05)
    assert [ranks.of[rank].loss() for rank in order] == [None] * 3


def test_a_connection_without_the_secret_is_refused():
    listener, port, secret = heartbeat.open_listener(is_single_node=True)
    address = Address("127.0.0.1", port, secret, "rank 0")
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b'{"name": "rank 1", "secret": "guessed"}\n')
        monitors: list[HeartbeatMonitor] = []
        main = threading.Thread(target=lambda: monitors.append(heartbeat.accept_peers(listener, address, 2)))
        main.start()
        other = heartbeat.connect("rank 1", address)
        main.join(5)
        assert [*monitors[0].peers.values()] == ["rank 1"]
        other.close()
        monitors[0].close()
