"""A small stand-in for the HTTP API of the Hugging Face hub, on loopback: what its client calls to transfer models.

It keeps repositories in memory: commits of files, of which weights are stored as large files (git LFS). A client reaches it
by HF_ENDPOINT, in a process of its own (`environment`) or in this one (`connect`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

READ, WRITE = "hf_read", "hf_write"
"""Tokens: one may read private repositories, the other may write, too."""
LICENSES = ("apache-2.0", "cc-by-4.0", "mit")
LARGE = (".safetensors", ".model")
"""Endings of files that are uploaded as large files."""


@dataclass
class Repository:
    """Commits of a repository, oldest first: each a hash and the content of all files."""

    private: bool = False
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit and return its hash."""
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((sha, files))
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return a commit by its hash, or the latest one for `main`; None if there is none."""
        return self.commits[-1] if revision == "main" else next((c for c in self.commits if c[0] == revision), None)


class HubServer(ThreadingHTTPServer):
    """The server: repositories by name, large files by hash, and a line for each request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.sizes: dict[str, int] = {}
        """Sizes by path that the server reports in place of the true ones."""
        self.status: int | None = None
        """Status of every response, if set."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def storage_url(self) -> str:
        """Address of the large files: another host, as the hub redirects to its storage."""
        return f"http://localhost:{self.server_address[1]}/cdn"

    def files(self, name: str) -> dict[str, bytes]:
        """Return the files of a repository's last commit."""
        return self.repositories[name].commits[-1][1]

    def add(self, name: str, folder: Path, **kwargs: Any) -> Repository:
        """Add a repository with the files of a folder."""
        repository = self.repositories[name] = Repository(**kwargs)
        repository.commit({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
        return repository

    def environment(self, home: Path, token: str | None = None, offline: bool = False) -> dict[str, str]:
        """Return the variables of a process that reaches this server and has an empty home."""
        home.mkdir(parents=True, exist_ok=True)
        variables = {"HF_ENDPOINT": self.url, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_XET": "1"}
        return variables | {"HF_TOKEN": token or "", "HF_HUB_OFFLINE": "1" if offline else "0"}

    def connect(self, patch: pytest.MonkeyPatch, home: Path, token: str | None = None) -> None:
        """Let the client in this process reach this server, with a cache of its own."""
        from huggingface_hub import constants

        patch.setattr(constants, "ENDPOINT", self.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{self.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setenv("HF_TOKEN", token or "")


class Handler(BaseHTTPRequestHandler):
    """Answers a request; `server` has the state."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        parts = self._begin()
        if parts is None:
            return
        match parts:
            case ["api", "models", user, name]:
                self._info(f"{user}/{name}", "main")
            case ["api", "models", user, name, "revision", revision]:
                self._info(f"{user}/{name}", revision)
            case ["api", "models", user, name, "tree", revision]:
                self._tree(f"{user}/{name}", revision)
            case [user, name, "resolve", revision, path]:
                self._resolve(f"{user}/{name}", revision, path)
            case ["cdn", oid]:
                self._send(200, self.server.large_files[oid])
            case _:
                self._refuse(404, "NotFound")

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        parts = self._begin()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if parts is None:
            return
        match parts:
            case ["api", "validate-yaml"]:
                self._validate(json.loads(body)["content"])
            case ["api", "repos", "create"]:
                self._create(json.loads(body))
            case ["api", "models", user, name, "preupload", "main"]:
                self._preupload(f"{user}/{name}", json.loads(body))
            case ["api", "models", user, name, "commit", "main"]:
                self._commit(f"{user}/{name}", [json.loads(line) for line in body.splitlines()])
            case [_, _, "info", "lfs", "objects", "batch"]:
                self._batch(json.loads(body))
            case _:
                self._refuse(404, "NotFound")

    def do_PUT(self) -> None:
        oid = urlsplit(self.path).path.rpartition("/")[2]
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(f"PUT {self.path}")
        assert hashlib.sha256(content).hexdigest() == oid
        self.server.large_files[oid] = content
        self._send(200, b"")

    def _begin(self) -> list[str] | None:
        """Record the request and return the parts of its path; None if it is answered already."""
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.status is not None:
            self._refuse(self.server.status, "")
            return None
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    @property
    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _repository(self, name: str) -> Repository | None:
        """Return a repository that the token may read; else refuse as the hub does, which hides private ones."""
        repository = self.server.repositories.get(name)
        if self._token not in (None, READ, WRITE):
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and self._token is None):
            self._refuse(401 if self._token is None else 404, "RepoNotFound")
        else:
            return repository
        return None

    def _at(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self._repository(name)
        commit = None if repository is None else repository.at(revision)
        if repository is not None and commit is None:
            self._refuse(404, "RevisionNotFound")
        return commit

    def _info(self, name: str, revision: str) -> None:
        commit = self._at(name, revision)
        if commit is not None:
            files = [{"rfilename": path} for path in commit[1]]
            private = self.server.repositories[name].private
            self._send_json({"id": name, "sha": commit[0], "private": private, "siblings": files})

    def _tree(self, name: str, revision: str) -> None:
        commit = self._at(name, revision)
        if commit is None:
            return
        entries = []
        for path, content in commit[1].items():
            size = self.server.sizes.get(path, len(content))
            entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": git_hash(content)}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
            entries.append(entry)
        self._send_json(entries)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        commit = self._at(name, revision)
        if commit is None:
            return
        if self.server.repositories[name].gated and self._token != WRITE:
            self._refuse(403, "GatedRepo")
            return
        content = commit[1].get(path)
        if content is None:
            self._refuse(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": commit[0], "ETag": f'"{git_hash(content)}"'}
        if not path.endswith(LARGE):
            self._send(200, content, headers)
            return
        oid = hashlib.sha256(content).hexdigest()
        self.server.large_files[oid] = content
        large = {
            "X-Linked-Etag": f'"{oid}"',
            "X-Linked-Size": str(len(content)),
            "Location": f"{self.server.storage_url}/{oid}",
        }
        self._send(302, b"", headers | large)

    def _validate(self, card: str) -> None:
        is_known = any(f"license: {license}\n" in card for license in LICENSES)
        errors = [] if is_known else [{"message": f'"license" must be one of {", ".join(LICENSES)}'}]
        content = json.dumps({"errors": errors, "warnings": []}).encode()
        self._send(400 if errors else 200, content, {"Content-Type": "application/json"})

    def _create(self, request: dict[str, Any]) -> None:
        name = f"{request['organization']}/{request['name']}"
        if self._token != WRITE:
            self._refuse(401 if self._token is None else 403, "", "no rights")
        elif name in self.server.repositories:
            self._refuse(409, "")
        else:
            repository = self.server.repositories[name] = Repository(private=request.get("visibility") == "private")
            repository.commit({".gitattributes": b""})
            self._send_json({"url": f"{self.server.url}/{name}"})

    def _preupload(self, name: str, request: dict[str, Any]) -> None:
        if self._repository(name) is None:
            return
        if self._token != WRITE:
            self._refuse(403, "", "no rights")
            return
        paths = [file["path"] for file in request["files"]]
        modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in paths}
        self._send_json(
            {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}
        )

    def _batch(self, request: dict[str, Any]) -> None:
        objects = []
        for each in request["objects"]:
            actions = {"upload": {"href": f"{self.server.url}/upload/{each['oid']}"}}
            objects.append(each if each["oid"] in self.server.large_files else {**each, "actions": actions})
        self._send_json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        files = dict(repository.commits[-1][1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large_files[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files)
        self._send_json({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        headers = {"X-Error-Code": code} | ({"X-Error-Message": message} if message else {})
        self._send(status, json.dumps({"error": message or code}).encode(), headers)

    def _send_json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def git_hash(content: bytes) -> str:
    """Return git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve() -> Iterator[HubServer]:
    """Run a server in a thread."""
    server = HubServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
