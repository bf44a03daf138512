"""Download of public models into a cache: once per cache, atomically, with the digest that the first download had.

A cache belongs to one user, and all processes and nodes that see it share it. Publishers of these models rarely give
digests: the first download's is written down, and later ones must have it. Trade-off: the first download is trusted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from filelock import FileLock

from ulmfit_dist.errors import UserError
from ulmfit_dist.pretrained.archives import RefusedArchiveError, is_archive, unpack
from ulmfit_dist.pretrained.registry import PublicModel
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

CACHE_VARIABLE = "ULMFIT_DIST_CACHE"
"""Environment variable with the cache folder; default: `ulmfit_dist` in XDG_CACHE_HOME or ~/.cache."""
TIMEOUT = 60
"""Timeout of a silent server, in seconds."""
MAX_BYTES = 4 << 30
"""Maximum size of a download, in bytes."""
_AT_ONCE = 1 << 20
_COMPLETE = ".complete"


def cache_folder() -> Path:
    """Return the folder of downloaded models, which may not exist yet."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder).expanduser() / "pretrained"
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "ulmfit_dist" / "pretrained"


def cached_model(model: PublicModel, backwards: bool) -> Path | None:
    """Return the folder of a model that has been downloaded; None if it has not."""
    folder = _folder(model, backwards)
    return folder if (folder / _COMPLETE).is_file() else None


def download_model(model: PublicModel, backwards: bool) -> Path:
    """Return the folder of a model, downloaded and unpacked if it is not there; other processes wait meanwhile.

    Raises:
        UserError: a file cannot be downloaded, has another digest than before, or is damaged.
    """
    folder = _folder(model, backwards)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not (folder / _COMPLETE).is_file():
                _fill(folder, model, model.addresses(backwards))
    except OSError as error:
        raise UserError(
            f"model.pretrained={model.name}: {cache_folder()} cannot be used ({error}): set {CACHE_VARIABLE} to a folder"
        ) from None
    return folder


def _folder(model: PublicModel, backwards: bool) -> Path:
    """Return where a model is unpacked: a folder for both directions if the same files hold both."""
    model.addresses(backwards)
    is_shared = model.forwards == model.backwards
    return cache_folder() / (model.name if is_shared else f"{model.name}-{'backwards' if backwards else 'forwards'}")


def _fill(folder: Path, model: PublicModel, addresses: Sequence[str]) -> None:
    """Write a folder with the content of archives and with other files, then rename it."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for address in addresses:
            path = _download(model, address, temporary)
            if is_archive(path):
                _unpack(path, temporary)
                (temporary / path.name).unlink(missing_ok=True)
            elif path.parent != temporary:
                shutil.copyfile(path, temporary / path.name)
        (temporary / _COMPLETE).touch()
        shutil.rmtree(folder, ignore_errors=True)  # one without the mark: someone has removed files from it
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack(path: Path, folder: Path) -> None:
    try:
        unpack(path, folder)
    except RefusedArchiveError as error:
        raise UserError(f"{path}: refused: {error}: remove it to download it again") from None


def _download(model: PublicModel, address: str, folder: Path) -> Path:
    """Return a file of a model: the one that has been put into the cache, or a download in `folder`."""
    path = cache_folder() / "brought" / model.name / file_name(address)
    if not path.is_file():
        logger.info(f"pretrained {model.name}: downloading {address} ({model.source}; license: {model.license})")
        expected, path = path, folder / path.name
        _fetch(model, address, path, expected)
    _check_digest(model, address, path)
    return path


def _fetch(model: PublicModel, address: str, path: Path, manual_path: Path) -> None:
    """Download a file to `path`; `manual_path` is where a user can put it, for the message."""
    try:
        with requests.get(address, stream=True, timeout=TIMEOUT) as response, path.open("wb") as out:
            response.raise_for_status()
            if response.headers.get("Content-Type", "").startswith("text/html"):
                raise requests.RequestException("the server shows a page in place of the file")
            size = 0
            for block in response.iter_content(_AT_ONCE):
                size += len(block)
                if size > MAX_BYTES:
                    raise requests.RequestException(f"larger than {MAX_BYTES >> 30} GiB")
                out.write(block)
            expected = response.headers.get("Content-Length")
            if expected and "Content-Encoding" not in response.headers and size != int(expected):
                raise requests.RequestException(f"{size:,} of {int(expected):,} bytes")
    except requests.RequestException as error:
        reason = str(error) if type(error) in (requests.HTTPError, requests.RequestException) else type(error).__name__
        raise UserError(
            f"model.pretrained={model.name}: {address} cannot be downloaded ({reason}): download it on a machine with a "
            f"network and put it at {manual_path}, or set model.pretrained to a folder with the model's files"
        ) from None


def _check_digest(model: PublicModel, address: str, path: Path) -> None:
    """Compare a file's digest to the known one, or to that of the first download, which is written down."""
    actual = _sha256(path)
    known = model.sha256.get(address)
    record = cache_folder() / "digests" / model.name / f"{path.name}.sha256"
    if known is None and record.is_file():
        known = record.read_text(encoding="ascii").strip()
    if known is not None and known != actual:
        fix = "" if address in model.sha256 else f": if so, remove {record}"
        raise UserError(
            f"{path}: its SHA-256 is {actual}, expected {known}: the download is damaged, or its publisher has replaced the "
            f"file{fix}"
        )
    if known is None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(f"{actual}\n", encoding="ascii")


def _sha256(path: Path) -> str:
    """Return the digest of a file, hexadecimal. Python 3.10 has no hashlib.file_digest."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def file_name(address: str) -> str:
    """Return the last part of an address as a file name, that of its query if the path has none with a suffix."""
    parts = urlsplit(address)
    path_name, query_name = (unquote(part).rsplit("/", 1)[-1] for part in (parts.path, parts.query))
    name = path_name if "." in path_name else query_name.rpartition("=")[2] or path_name
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in name) or "model"
