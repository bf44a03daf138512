"""HTTP server of files on loopback, which records what was asked for."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FILE, PAGE = "application/octet-stream", "text/html; charset=utf-8"


class Server(ThreadingHTTPServer):
    """A server.

    Attributes:
        files: content by path; a `str` is the path that it redirects to.
        pages: paths that are served as HTML.
        cut: paths whose content ends a byte early.
        asked: paths that were asked for, in order.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes | str] = {}
        self.pages: set[str] = set()
        self.cut: set[str] = set()
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 302 if isinstance(content, str) else 200)
        if isinstance(content, str):
            self.send_header("Location", content)
        else:
            self.send_header("Content-Type", PAGE if self.path in self.server.pages else FILE)
            self.send_header("Content-Length", str(len(content or b"") + (self.path in self.server.cut)))
        self.end_headers()
        if isinstance(content, bytes):
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(files: Mapping[str, bytes | str]) -> Iterator[Server]:
    server = Server()
    server.files |= files
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
