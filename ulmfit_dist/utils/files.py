"""Reading files that somebody else may have written."""

from __future__ import annotations

from pathlib import Path


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a plain file of at most `most` bytes.

    Raises:
        OSError: it is missing, no plain file (nor a link to one), or larger.
    """
    if path.exists() and not path.is_file():
        raise OSError("not a plain file")
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(f"{path.stat().st_size:,} bytes, more than the {most:,} that it could have")
    return content
