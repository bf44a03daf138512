"""Detection of dead ranks: each rank is notified within a second when another one exits early, with its name and reason.

A collective that waits for a dead rank reports at best a closed connection, and at worst nothing until its timeout. So
every rank holds a connection to rank 0. It is idle until a rank exits: the rank then sends a reason, or none after an
orderly exit. A connection that closes without a message belongs to a killed process; if a whole machine is down, TCP
keepalive closes it after `KEEPALIVE_TIMEOUT` seconds. Rank 0 relays the loss to all ranks. The kernel answers keepalive
probes, so a rank may be busy or suspended for any time. The trade-off: each rank needs a second port of rank 0's host.
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
from typing import TYPE_CHECKING, Any, NamedTuple

from ulmfit_dist.errors import FAILED

if TYPE_CHECKING:
    from ulmfit_dist.distributed.collectives import Collectives

KEEPALIVE_TIMEOUT = 15
"""Time after which an unresponsive machine counts as down, in seconds."""
GRACE = 10
"""Grace period in which a rank may exit by itself after the loss of another, in seconds."""
CONNECT_TIMEOUT = 30
"""Time limit for all ranks to connect, in seconds."""
KILLED = "exited without an error: it was killed (out of memory?), or its machine is down"
"""Reason given for a connection that closes without a message."""
MAX_MESSAGE_BYTES = 4096
"""Size limit of a message, in bytes."""

Message = dict[str, Any]


class Address(NamedTuple):
    """Listener of rank 0.

    Attributes:
        secret: token that a peer must present.
        name: name of rank 0 in messages.
    """

    host: str
    port: int
    secret: str
    name: str


class HeartbeatMonitor:
    """One rank's connections to its peers, and a thread that watches them.

    Args:
        name: name of this process in messages.
        peers: connections, and the names of their remote ends: all other ranks on rank 0, rank 0 on the others.
        relay: whether to send a loss to all peers.
        give_up: called with the message, in the thread, if this process still runs `GRACE` seconds after a loss.
    """

    def __init__(
        self, name: str, peers: dict[socket.socket, str], relay: bool, give_up: Callable[[str], None] | None = None
    ):
        self.name, self.peers, self.relay, self.give_up = name, peers, relay, give_up or end_process
        self._lost, self._closed, self._message = threading.Event(), threading.Event(), ""
        for peer in peers:
            _enable_keepalive(peer)
        threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()

    def loss(self, patience: float = 0) -> str | None:
        """Return the lost rank and the reason as a clause; None if no rank is lost within `patience` seconds."""
        return self._message if self._lost.wait(patience) else None

    def close(self, error: str | None = None) -> None:
        """Notify the other ranks that this one exits, with its error if there is one, and stop watching."""
        self._closed.set()
        for peer in self.peers:
            _send(peer, {"name": self.name, "reason": error and f"failed with {error[:1000]}"})
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)

    def _watch(self) -> None:
        """Read messages until all peers have exited, or one is lost."""
        with selectors.DefaultSelector() as selector:
            for peer in self.peers:
                selector.register(peer, selectors.EVENT_READ, data=peer)
            while selector.get_map() and not self._closed.is_set():
                for peer in [key.data for key, _ in selector.select(timeout=1)]:
                    message = _receive(peer) or {"name": self.peers[peer], "reason": KILLED}
                    if message["reason"] is not None:
                        self._handle_loss(message)
                        return
                    selector.unregister(peer)

    def _handle_loss(self, message: Message) -> None:
        self._message = f"{message['name']} {message['reason']}"
        if self.relay:  # before this rank may exit because of it
            for peer in self.peers:
                _send(peer, message)
        self._lost.set()
        if not self._closed.wait(GRACE):
            self.give_up(self._message)


def start_monitor(ranks: Collectives, name: str, main_host: str | None) -> tuple[HeartbeatMonitor | None, str | None]:
    """Connect all ranks to rank 0. Collective.

    Args:
        name: name of this process in messages.
        main_host: host of rank 0; None: the host name that rank 0 reports.

    Returns:
        The monitor, or None with the first rank's error if the network does not allow the connections.
    """
    hosts = ranks.all_gather_object(socket.gethostname())
    is_single_node = len(set(hosts)) == 1
    listener, port, secret = open_listener(is_single_node) if ranks.rank == 0 else (None, 0, "")
    host = "127.0.0.1" if is_single_node else hosts[0] if main_host is None else main_host
    address = ranks.broadcast_object(Address(host, port, secret, name))
    monitor, error = None, None
    try:
        monitor = connect(name, address) if listener is None else accept_peers(listener, address, ranks.world_size)
    except OSError as raised:
        error = f"rank {ranks.rank}: {raised}"
    errors = [error for error in ranks.all_gather_object(error) if error is not None]
    if not errors:
        return monitor, None
    if monitor is not None:
        monitor.close()
    return None, errors[0]


def open_listener(is_single_node: bool) -> tuple[socket.socket, int, str]:
    """Open rank 0's listener, on loopback if all ranks run on this machine. Returns the socket, its port and a secret."""
    listener = socket.create_server(("127.0.0.1" if is_single_node else "", 0), backlog=4096)
    return listener, listener.getsockname()[1], secrets.token_hex(16)


def accept_peers(listener: socket.socket, address: Address, world_size: int) -> HeartbeatMonitor:
    """Return rank 0's monitor, once all other ranks have connected. Raises OSError after `CONNECT_TIMEOUT` seconds."""
    peers: dict[socket.socket, str] = {}
    deadline = time.monotonic() + CONNECT_TIMEOUT
    with listener:
        while len(peers) < world_size - 1:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            peer, _ = listener.accept()
            peer.settimeout(CONNECT_TIMEOUT)
            message = _receive(peer) or {}
            if message.get("secret") == address.secret:
                peers[peer] = str(message["name"])
            else:
                peer.close()
    return HeartbeatMonitor(address.name, peers, relay=True)


def connect(name: str, address: Address) -> HeartbeatMonitor:
    """Return the monitor of another rank. Raises OSError if rank 0 cannot be reached."""
    main = socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT)
    _send(main, {"name": name, "secret": address.secret})
    return HeartbeatMonitor(name, {main: address.name}, relay=False)


def end_process(message: str) -> None:
    """Exit this process, even if its main thread is blocked."""
    print(f"ulmfit-dist: error: {message}; this rank exits too", file=sys.stderr, flush=True)
    os._exit(FAILED)


def _enable_keepalive(peer: socket.socket) -> None:
    """Enable TCP keepalive, by which the kernel probes the other machine."""
    peer.settimeout(GRACE / 2)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval = KEEPALIVE_TIMEOUT // 3
    for option, value in (("TCP_KEEPIDLE", interval), ("TCP_KEEPINTVL", interval), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, option):  # macOS lacks one
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _send(peer: socket.socket, message: Message) -> None:
    with contextlib.suppress(OSError):  # the peer is gone
        peer.sendall(json.dumps(message).encode() + b"\n")


def _receive(peer: socket.socket) -> Message | None:
    """Return the next message of a peer; None if the connection closes before its end."""
    line = b""
    try:
        while not line.endswith(b"\n"):
            line += (byte := peer.recv(1))
            if not byte or len(line) > MAX_MESSAGE_BYTES:
                return None
        return dict(json.loads(line))
    except (OSError, ValueError, TypeError):
        return None
