"""Processes of tests: forks of a server that has imported all libraries, where that is the same as a new interpreter.

`popen` is `subprocess.Popen` for command lines of this Python. See `fork_server.py` for what a fork is, and is not.
"""

from __future__ import annotations

import atexit
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fork_server
from fork_server import differing, fixed, receive, send

OF_THE_SERVER = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
"""Variables of the server, beside those of the tests: as the helpers that start processes have them."""
NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Variables with which no library starts a thread at its import."""
_usual: dict[str, str] = {}
_server: Server | None = None
_lock = threading.Lock()


class Server:
    """The fork server of this process, and the connection to it."""

    def __init__(self) -> None:
        self.env = {**(_usual or os.environ), **OF_THE_SERVER}
        self.env.pop("PYTEST_CURRENT_TEST", None)
        self.owner = os.getpid()
        self.connection, reference = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, fork_server.__file__, str(reference.fileno())],
            cwd=OF_THE_SERVER["PYTHONPATH"], env={**self.env, **NO_THREADS}, pass_fds=[reference.fileno()],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        reference.close()
        self.names: frozenset[str] = receive(self.connection)[0]

    def close(self) -> None:
        """End the server, which ends none of its forks."""
        self.connection.close()
        if self.owner == os.getpid():
            self.process.wait()


class Forked(subprocess.Popen):
    """A fork of the server, with the methods of `Popen`."""

    def __init__(
        self,
        server: Server,
        argv: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        stdout: Any,
        stderr: Any,
        new_session: bool,
    ):
        self.args, self.returncode, self.stdin = argv, None, None
        self._communication_started, self._input, self._child_created = False, None, True
        self._waitpid_lock, self._sigint_wait_secs = threading.Lock(), 0.25
        self.encoding, self.errors, self.text_mode = "utf-8", None, True
        self._files: list[int] = []
        self.stdout, out = self._stream(stdout, 1)
        self.stderr, err = self._stream(stderr, 2)
        self._status, status = os.pipe()
        send(server.connection, (argv[1:], dict(env), str(cwd), new_session), [out, err, status])
        self.pid: int = receive(server.connection)[0]
        for file in [*self._files, status]:
            os.close(file)

    def _stream(self, kind: Any, number: int) -> tuple[Any, int]:
        """The end to read from, if any, and the file of the process."""
        if kind is None:
            return None, number
        if kind == subprocess.DEVNULL:
            self._files.append(os.open(os.devnull, os.O_WRONLY))
            return None, self._files[-1]
        assert kind == subprocess.PIPE
        ours, reference = os.pipe()
        self._files.append(reference)
        return open(ours, encoding="utf-8"), reference

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if wait_flags & os.WNOHANG and not select.select([self._status], [], [], 0)[0]:
            return 0, 0
        content = os.read(self._status, 4)
        assert content, "the fork server has ended"
        return self.pid, struct.unpack("!i", content)[0]

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None and self._waitpid_lock.acquire(False):
            try:
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid == self.pid:
                        self._handle_exitstatus(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode

    def _handle_exitstatus(self, status: int, *_: Any) -> None:
        self.returncode = os.waitstatus_to_exitcode(status)
        os.close(self._status)

    def __del__(self, *_: Any, **__: Any) -> None:
        if getattr(self, "returncode", 0) is None and hasattr(self, "_status"):
            os.close(self._status)


def remember_environment() -> None:
    """Have the server start in this environment, and not in the one that a test has made for itself."""
    _usual.update(os.environ)


def popen(
    argv: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: Any = None, stderr: Any = None, new_session: bool = False
) -> subprocess.Popen[str]:
    """A process of this Python with text streams: a fork of the server, or a real one where its variables ask for that."""
    with _lock:
        server = _running_server()
        is_alike = not any(fixed(name, server.names) for name in differing(env, server.env))
        if env.get("ACCELERATE_USE_CPU") == "true" and is_alike:
            return Forked(server, argv, cwd, env, stdout, stderr, new_session)
    return real_popen(argv, cwd, env, stdout, stderr, new_session)


def real_popen(
    argv: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: Any = None, stderr: Any = None, new_session: bool = False
) -> subprocess.Popen[str]:
    """As `popen`, a new interpreter."""
    return subprocess.Popen(argv, cwd=cwd, env=env, stdout=stdout, stderr=stderr, text=True, start_new_session=new_session)


def _running_server() -> Server:
    global _server
    if _server is None or _server.owner != os.getpid():
        _server = Server()
        atexit.register(_server.close)
    return _server
