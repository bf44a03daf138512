"""Files: bounded reads of untrusted files, and writers that replace a file atomically.

A writer writes a temporary file in the same folder and renames it, so a reader, or a resumed process, sees the old file or
the new one, never a part. Trade-off: the folder must have room for both.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ulmfit_dist.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        OSError: the file is missing, not a regular file (nor a link to one), or larger.
    """
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"{path.stat().st_size:,} bytes, but at most {most:,} are allowed")
    return content


def make_folder(path: Path, key: str) -> None:
    """Make a folder, with its parents.

    Args:
        key: config key that sets the folder, for messages.

    Raises:
        UserError: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror}): set {key} to a writable folder") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        UserError: the file cannot be written; no temporary file remains.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def write_json(path: Path, content: Any, indent: int | None = 1) -> None:
    """Write JSON atomically; `indent=None` is many times faster."""
    write_bytes(path, json.dumps(content, ensure_ascii=False, indent=indent).encode("utf-8"))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table atomically, in Arrow's file format."""
    import pyarrow as pa

    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    write_bytes(path, buffer.getvalue().to_pybytes())
