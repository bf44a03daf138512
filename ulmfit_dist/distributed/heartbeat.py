"""Notices within a moment that another rank has died, and says which.

A collective that waits for a dead rank says at best that a connection was closed, and at worst nothing for as long as its
timeout lasts. So every rank holds a connection to rank 0, on which nothing is sent until somebody leaves. Who leaves says
how: in order, or with an error. A connection that ends without a word is that of a process that was killed; the kernel tells
at once, and after `SILENCE` seconds where a whole machine is gone. Rank 0 tells the others. A rank may be busy, or stopped,
for as long as it likes: it is the kernel that answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ulmfit_dist.errors import FAILED

SILENCE = 15
"""Seconds after which a machine that answers nothing is taken for dead."""
GRACE = 10
"""Seconds that a rank has to end by itself once another one is lost."""
JOINING = 30
"""Seconds that all ranks have to connect."""
KILLED = "ended without a word: it was killed, for memory perhaps, or its machine is gone"
LONGEST_WORD = 4096

Word = dict[str, Any]
Address = tuple[str, int, str, str]
"""Rank 0's host and port, a secret without which nobody may speak, and rank 0's name."""


class HeartbeatMonitor:
    """One rank's end of the watch.

    Args:
        name: of this process.
        peers: connections, and the names of who is at their other end: the others' on rank 0, rank 0's on the others.
        relay: whether to tell all peers of a loss.
        give_up: called with the message, in another thread, where this process goes on for `GRACE` seconds after a loss.
    """

    def __init__(
        self, name: str, peers: dict[socket.socket, str], relay: bool, give_up: Callable[[str], None] | None = None
    ):
        self.name, self.peers, self.relay, self.give_up = name, peers, relay, give_up or end_process
        self._lost, self._left, self._message = threading.Event(), threading.Event(), ""
        for peer in peers:
            _keep_alive(peer)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def loss(self, patience: float = 0) -> str | None:
        """Which rank is gone and why, as half a line; None if all are there. Waits for such news for some seconds."""
        return self._message if self._lost.wait(patience) else None

    def leave(self, error: str | None = None) -> None:
        """Tell the others that this rank ends, and with which error if not in order; and watch no more."""
        self._left.set()
        for peer in self.peers:
            _send(peer, {"who": self.name, "why": error and f"failed with {error[:1000]}"})
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        """Until all others have left, or one is lost."""
        with selectors.DefaultSelector() as selector:
            for peer in self.peers:
                selector.register(peer, selectors.EVENT_READ, data=peer)
            while selector.get_map() and not self._left.is_set():
                for peer in [key.data for key, _ in selector.select(timeout=1)]:
                    word = _receive(peer) or {"who": self.peers[peer], "why": KILLED}
                    if word["why"] is not None:
                        self._lose(word)
                        return
                    selector.unregister(peer)

    def _lose(self, word: Word) -> None:
        self._message = f"{word['who']} {word['why']}"
        if self.relay:  # before this rank can end because of it
            for peer in self.peers:
                _send(peer, word)
        self._lost.set()
        if not self._left.wait(GRACE):
            self.give_up(self._message)


def open_listener(all_here: bool) -> tuple[socket.socket, int, str]:
    """Where the others knock at rank 0's: a socket, its port, a secret. `all_here`: all ranks are on this machine."""
    door = socket.create_server(("127.0.0.1" if all_here else "", 0), backlog=4096)
    return door, door.getsockname()[1], secrets.token_hex(16)


def watch_from_main(door: socket.socket, address: Address, world_size: int) -> HeartbeatMonitor:
    """Rank 0's watch, once the other ranks have connected. Raises OSError where some do not."""
    peers: dict[socket.socket, str] = {}
    deadline = time.monotonic() + JOINING
    with door:
        while len(peers) < world_size - 1:
            door.settimeout(max(0.01, deadline - time.monotonic()))
            peer, _ = door.accept()
            peer.settimeout(JOINING)
            word = _receive(peer) or {}
            if word.get("secret") == address[2]:
                peers[peer] = str(word["who"])
            else:
                peer.close()
    return HeartbeatMonitor(address[3], peers, relay=True)


def connect(name: str, address: Address) -> HeartbeatMonitor:
    """Another rank's watch. Raises OSError where rank 0 cannot be reached."""
    host, port, secret, name_of_main = address
    main = socket.create_connection((host, port), timeout=JOINING)
    _send(main, {"who": name, "secret": secret})
    return HeartbeatMonitor(name, {main: name_of_main}, relay=False)


def end_process(message: str) -> None:
    """End this process, whatever its main thread is waiting for."""
    print(f"ulmfit-dist: error: {message}; so this rank stops, too", file=sys.stderr, flush=True)
    os._exit(FAILED)


def _keep_alive(peer: socket.socket) -> None:
    """Have the kernel ask, now and then, whether the other machine is still there."""
    peer.settimeout(GRACE / 2)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", SILENCE // 3), ("TCP_KEEPINTVL", SILENCE // 3), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, option):  # macOS lacks one
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _send(peer: socket.socket, word: Word) -> None:
    with contextlib.suppress(OSError):  # gone itself
        peer.sendall(json.dumps(word).encode() + b"\n")


def _receive(peer: socket.socket) -> Word | None:
    """What the other end says; None where it has ended without a word."""
    line = b""
    try:
        while not line.endswith(b"\n"):
            line += (byte := peer.recv(1))
            if not byte or len(line) > LONGEST_WORD:
                return None
        return dict(json.loads(line))
    except (OSError, ValueError, TypeError):
        return None
