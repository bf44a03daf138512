"""Content hashes of files, kept so that a file which has not changed is not read again.

An entry is found by absolute path, inode, size, and the times of the last change of content and of status, in nanoseconds.
It only skips hashing: the token store is named by the hash, never by these. A file that was changed with all of them kept
is noticed by `prepare --verify`, which reads every file again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from ulmfit_dist.data.sources.base import ReadOptions
from ulmfit_dist.data.sources.row_reader import VERSION, FileIndex, index_file
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import make_folder, write_bytes

BLOCK = 1 << 22
"""Bytes that are hashed at once."""
READERS = 8
"""Threads that read small files."""


@dataclass(frozen=True)
class ContentCache:
    """Results of reading files, by what the file system says of them.

    Attributes:
        folder: where they are kept: `sources` in `data.cache_dir`.
        verify: read every file again, whatever is kept.
    """

    folder: Path
    verify: bool = False

    def index(self, file: Path, options: ReadOptions) -> FileIndex:
        """Return the index of a file of rows. Raises UserError, as `index_file`."""
        kept = self._entry([stamp(file), asdict(options), VERSION], lambda: asdict(index_file(file, options)))
        return FileIndex(**kept)

    def hash_file(self, file: Path) -> str:
        """Return the xxh3 of a file's bytes. Raises UserError if it cannot be read."""
        return str(self._entry([stamp(file)], lambda: hash_file(file)))

    def hash_files(self, files: Sequence[Path]) -> list[str]:
        """Return the xxh3 of each file's bytes; all are hashed again if one has changed. Raises UserError."""

        def read() -> list[str]:
            with ThreadPoolExecutor(READERS) as pool:
                return list(pool.map(hash_file, files, chunksize=64))

        return list(self._entry([stamp(file) for file in files], read))

    def hash_once(self, files: Sequence[Path], key: Any, compute: Callable[[], str]) -> str:
        """Return a hash of what is in these files, computed where they may have changed. Raises UserError.

        Args:
            key: what else the hash depends on.
        """
        return str(self._entry([[stamp(file) for file in files], key], compute))

    def _entry(self, key: Any, compute: Callable[[], Any]) -> Any:
        path = self.folder / f"{xxhash.xxh3_128_hexdigest(json.dumps(key).encode())}.json"
        if not self.verify:
            try:
                return json.loads(path.read_bytes())
            except (OSError, ValueError):
                pass  # read the files
        content = compute()
        with suppress(UserError):  # a cache that cannot be written may hold the token store, which is enough
            make_folder(self.folder, "data.cache_dir")
            write_bytes(path, json.dumps(content).encode())
        return content


def stamp(file: Path) -> list[Any]:
    """Return what the file system says of a file, and what changes when its content does. Raises UserError."""
    try:
        status = file.stat()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    return [os.path.abspath(file), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def hash_file(file: Path) -> str:
    """Return the xxh3 of a file's bytes, hexadecimal. Raises UserError if it cannot be read."""
    digest = xxhash.xxh3_128()
    try:
        with file.open("rb", buffering=0) as content:
            while block := content.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()
