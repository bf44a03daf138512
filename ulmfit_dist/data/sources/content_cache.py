"""Cache of content hashes, so that an unchanged file is not read again.

The key of an entry is absolute path, inode, size, mtime and ctime in nanoseconds. The cache only skips hashing: a token
store is named by content hashes. Trade-off: a file that changes with all of these preserved goes unnoticed, until
`prepare --verify` reads every file again.
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
"""Block size of hashing, in bytes."""
READERS = 8
"""Number of threads that read small files."""


@dataclass(frozen=True)
class ContentCache:
    """Cache of hashes and indices of files.

    Attributes:
        folder: folder of the entries: `sources` in `data.cache_dir`.
        verify: read every file again, ignoring the entries.
    """

    folder: Path
    verify: bool = False

    def index(self, file: Path, options: ReadOptions) -> FileIndex:
        """Return the index of a CSV or JSON file. Raises UserError, as `index_file`."""
        entry = self._entry([file_status(file), asdict(options), VERSION], lambda: asdict(index_file(file, options)))
        return FileIndex(**entry)

    def hash_file(self, file: Path) -> str:
        """Return the xxh3 of a file's bytes. Raises UserError if it cannot be read."""
        return str(self._entry([file_status(file)], lambda: hash_file(file)))

    def hash_files(self, files: Sequence[Path]) -> list[str]:
        """Return the xxh3 of each file's bytes; if one has changed, all are hashed again. Raises UserError."""

        def read() -> list[str]:
            with ThreadPoolExecutor(READERS) as pool:
                return list(pool.map(hash_file, files, chunksize=64))

        return list(self._entry([file_status(file) for file in files], read))

    def hash_once(self, files: Sequence[Path], key: Any, compute: Callable[[], str]) -> str:
        """Return a hash of the content of files, computed if a file may have changed. Raises UserError.

        Args:
            key: JSON-able value that the hash depends on, besides the files.
        """
        return str(self._entry([[file_status(file) for file in files], key], compute))

    def _entry(self, key: Any, compute: Callable[[], Any]) -> Any:
        path = self.folder / f"{xxhash.xxh3_128_hexdigest(json.dumps(key).encode())}.json"
        if not self.verify:
            try:
                return json.loads(path.read_bytes())
            except (OSError, ValueError):
                pass  # no entry: read the files
        content = compute()
        with suppress(UserError):  # a read-only cache folder may still hold the token store
            make_folder(self.folder, "data.cache_dir")
            write_bytes(path, json.dumps(content).encode())
        return content


def file_status(file: Path) -> list[Any]:
    """Return path, inode, size, mtime and ctime of a file, which change with its content. Raises UserError."""
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
