"""Unpacking of archives of unknown origin: bounded in size and number, without links, inside of one folder.

tarfile and zipfile do the reading; the limits are here, because neither has any for size.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

MAX_MEMBERS = 1000
"""Maximum number of files in an archive."""
MAX_RATIO = 4
"""Maximum size of the files relative to the archive; weights compress to nine tenths, vocabularies to a third."""
FREE_BYTES = 64 << 20
"""Size up to which files may have any ratio, in bytes."""
TOO_LARGE = f"its files are more than {MAX_RATIO} times as large as the archive"
_ZIP = b"PK\3\4"
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""Function that opens a compressed tar file, by its first bytes."""
_TAR_MARK = slice(257, 262)
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, ValueError, NotImplementedError, RuntimeError),  # the last two of zip files: method, password
)
"""Exceptions of tarfile and zipfile for a damaged archive."""
_AT_ONCE = 1 << 20


class RefusedArchiveError(Exception):
    """An archive that is damaged, or larger than a model, or that would write outside of its folder."""


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive by its content; the zip files of torch.save are not meant to be unpacked."""
    start = _start(path)
    if start.startswith(_ZIP):
        try:
            with zipfile.ZipFile(path) as archive:
                return not any(name.split("/")[1:] == ["data.pkl"] for name in archive.namelist())
        except DAMAGE:
            return True
    return start.startswith(tuple(_OPENERS)) or start[_TAR_MARK] == b"ustar"


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive into a folder, which may exist.

    Raises:
        RefusedArchiveError: its content is damaged or not allowed; files written so far remain.
        OSError: the archive cannot be read, or the folder cannot be written.
    """
    left = max(FREE_BYTES, MAX_RATIO * path.stat().st_size)
    try:
        with _members(path, left) as members:
            for number, (name, file) in enumerate(members):
                if number >= MAX_MEMBERS:
                    raise RefusedArchiveError(f"it has more than {MAX_MEMBERS} files")
                target = folder / _checked(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("xb") as out:
                    left = _copy(file, out, left)
    except DAMAGE as error:
        raise RefusedArchiveError(f"it is damaged ({type(error).__name__}: {error})"[:200]) from None
    except FileExistsError as error:
        raise RefusedArchiveError(f"it has {Path(str(error.filename)).name} twice") from None


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


class _Bounded:
    """A decompressed file of limited size: tarfile holds a long header in memory, of whatever size it gives."""

    def __init__(self, file: IO[bytes], most: int):
        self._file, self._left = file, most

    def read(self, size: int) -> bytes:
        content = self._file.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise RefusedArchiveError(TOO_LARGE)
        return content


@contextmanager
def _members(path: Path, most: int) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    start = _start(path)
    if start.startswith(_ZIP):
        with zipfile.ZipFile(path) as zip_file:
            yield _zip_members(zip_file)
        return
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), open)
    with opener(path, "rb") as file:
        bounded: Any = _Bounded(file, most)
        with tarfile.open(fileobj=bounded, mode="r|") as archive:
            yield _tar_members(archive)


def _zip_members(archive: zipfile.ZipFile) -> Iterator[tuple[str, IO[bytes]]]:
    for info in archive.infolist():
        kind = info.external_attr >> 28
        if kind not in (0, 0o4, 0o10):
            raise RefusedArchiveError(f"{info.filename[:100]} is a link or device")
        if not info.is_dir():
            with archive.open(info) as file:
                yield info.filename, file


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for number, info in enumerate(archive):
        if number >= 10 * MAX_MEMBERS:
            raise RefusedArchiveError(f"it has more than {10 * MAX_MEMBERS} entries")
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            raise RefusedArchiveError(f"{info.name[:100]} is a link or device")
        file = archive.extractfile(info)
        assert file is not None
        yield info.name, file


def _checked(name: str) -> PurePosixPath:
    """Return the path of a member if it lies inside of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.name or len(name) > 500:
        raise RefusedArchiveError(f"{name[:100]!r} lies outside of the folder that it is unpacked to")
    return path


def _copy(file: IO[bytes], out: IO[bytes], left: int) -> int:
    """Copy a member and return how many bytes may still be written."""
    while block := file.read(_AT_ONCE):
        left -= len(block)
        if left < 0:
            raise RefusedArchiveError(TOO_LARGE)
        out.write(block)
    return left
