"""Bounded reads of files from untrusted sources."""

from __future__ import annotations

from pathlib import Path


def read_bounded(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes.

    Raises:
        OSError: if it is missing, not a regular file (or a link to one), or larger.
    """
    if path.exists() and not path.is_file():
        raise OSError("not a regular file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"{path.stat().st_size:,} bytes, but at most {most:,} are allowed")
    return content
