"""Reader of W&B's offline files, because wandb has none in Python.

A `.wandb` file is a seven-byte header followed by LevelDB's log format: blocks of 32 KiB with fragments of records, each
with a checksum, a length and a type (full record, first, middle or last fragment). Trade-off: the format is W&B's own and
may change with its version.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

FILE_HEADER, BLOCK = 7, 32 * 1024
"""Sizes of the file header and of a block, in bytes."""
FRAGMENT_HEADER = struct.Struct("<IHB")
"""Checksum, length and type of a fragment."""
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """Iterate over the records of a file, up to the first incomplete one, which a killed process may leave."""
    return (record for record, _ in _records(path.read_bytes()))


def cut_off_incomplete(path: Path) -> None:
    """Truncate an incomplete record at the end of a closed file: `wandb sync` would stop there."""
    content = path.read_bytes()
    end = max((end for _, end in _records(content)), default=FILE_HEADER)
    if end < len(content):
        os.truncate(path, end)


def _records(content: bytes) -> Iterator[tuple[Record, int]]:
    """Yield the records, each with its end position in bytes."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    position, record = FILE_HEADER, b""
    while position + FRAGMENT_HEADER.size <= len(content):
        remaining = BLOCK - position % BLOCK
        if remaining < FRAGMENT_HEADER.size:
            position += remaining
            continue
        _, length, fragment_type = FRAGMENT_HEADER.unpack_from(content, position)
        begin = position + FRAGMENT_HEADER.size
        position = begin + length
        if fragment_type not in (FULL, FIRST, MIDDLE, LAST) or position > len(content):
            return
        record = content[begin:position] if fragment_type in (FULL, FIRST) else record + content[begin:position]
        if fragment_type in (FULL, LAST):
            try:
                yield Record.FromString(record), position
            except DecodeError:
                return


def files_of(folder: Path, run_id: str) -> list[Path]:
    """Return the files of a run in W&B's folder: one per start, oldest first."""
    return sorted(folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb"), key=lambda path: path.parent.name.split("run-", 1)[1])


def unsent_files(folder: Path, run_id: str) -> list[Path]:
    """Return the files of offline starts that are not marked as sent."""
    return [
        path for path in files_of(folder, run_id) if path.parent.name.startswith("offline-") and not _mark(path).exists()
    ]


def mark_as_sent(folder: Path, run_id: str) -> None:
    """Mark the files of offline starts as sent, so that `wandb sync` skips them."""
    for path in unsent_files(folder, run_id):
        _mark(path).touch()


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.synced")


def last_row(folder: Path, run_id: str) -> int | None:
    """Return the highest step of a run's history in its files; -1 if they have no history, None without files."""
    files = files_of(folder, run_id)
    rows = (record.history for path in files for record in records(path) if record.HasField("history"))
    return max((row.step.num for row in rows), default=-1) if files else None
