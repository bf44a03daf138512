"""A small W&B server on loopback: what wandb's own processes ask of one, kept in memory.

It takes runs, their history line by line at the offsets that it is sent with, files, artifacts, sweeps and workspaces; and
it answers a request to resume a run, as the real one does, with the end of its history. `wandb_graphql.py` is what it
keeps and answers, this file is the way there.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wandb_graphql import Artifact, Run, Server, Sweep

__all__ = ["Artifact", "Run", "Server", "Sweep", "wandb_server"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _HTTPServer

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with self.server.lock:
            content = json.dumps(self._take(body)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815

    def _take(self, body: bytes) -> dict[str, Any]:
        """Keep what was sent; returns the answer."""
        state, parts = self.server.state, self.path.split("/")
        if self.path == "/graphql":
            asked = json.loads(body)
            return {"data": state.answer(asked["query"], asked.get("variables") or {})}
        if parts[-1] == "file_stream":
            state.runs.setdefault(parts[-2], Run()).take(json.loads(body))
        elif parts[1] == "upload":
            state.runs[parts[2]].files["/".join(parts[3:])] = body
        elif parts[1] == "artifact":
            state.artifact_of(parts[2]).files["/".join(parts[3:])] = body
        return {}

    def log_message(self, *args: object) -> None:
        pass


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, state: Server):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state, self.lock = state, threading.Lock()
        state.url = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors, but those of a client that is killed, as tests do."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A server on a free port, until the end of the block."""
    state = Server()
    with _HTTPServer(state) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
