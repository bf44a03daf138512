"""Reads back what W&B has written: wandb itself has no reader in Python.

A `.wandb` file is LevelDB's log format behind a header of seven bytes: blocks of 32 KiB, in them pieces of records, each
with a checksum, a length and whether it is a whole record, or the first, a middle, or the last piece of one.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

FILE_HEADER, BLOCK, PIECE_HEADER = 7, 32 * 1024, struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(path: Path) -> Iterator[Record]:
    """The records of a file, up to where a killed process has left it."""
    return (record for record, _ in _records(path.read_bytes()))


def cut_off_incomplete(path: Path) -> None:
    """Remove what is no whole record from the end of a file that nobody writes to: `wandb sync` would go no further."""
    content = path.read_bytes()
    end = max((end for _, end in _records(content)), default=FILE_HEADER)
    if end < len(content):
        os.truncate(path, end)


def _records(content: bytes) -> Iterator[tuple[Record, int]]:
    """Records, and where each ends."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    position, record = FILE_HEADER, b""
    while position + PIECE_HEADER.size <= len(content):
        left = BLOCK - position % BLOCK
        if left < PIECE_HEADER.size:
            position += left
            continue
        _, length, kind = PIECE_HEADER.unpack_from(content, position)
        begin = position + PIECE_HEADER.size
        position = begin + length
        if kind not in (WHOLE, FIRST, MIDDLE, LAST) or position > len(content):
            return
        record = content[begin:position] if kind in (WHOLE, FIRST) else record + content[begin:position]
        if kind in (WHOLE, LAST):
            try:
                yield Record.FromString(record), position
            except DecodeError:
                return


def files_of(folder: Path, run_id: str) -> list[Path]:
    """The files that a run has written in W&B's folder: one for each time it was started, the oldest first."""
    return sorted(folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb"), key=lambda path: path.parent.name.split("run-", 1)[1])


def unsent_files(folder: Path, run_id: str) -> list[Path]:
    """The files of offline starts that W&B does not take for sent."""
    return [
        path for path in files_of(folder, run_id) if path.parent.name.startswith("offline-") and not _mark(path).exists()
    ]


def mark_as_sent(folder: Path, run_id: str) -> None:
    """Have `wandb sync` leave the files of offline starts out, as it does after it has sent them."""
    for path in unsent_files(folder, run_id):
        _mark(path).touch()


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.synced")


def last_row(folder: Path, run_id: str) -> int | None:
    """The highest step of a run's history in the files that it has written; -1 in empty ones, None without files."""
    files = files_of(folder, run_id)
    found = (record.history for path in files for record in records(path) if record.HasField("history"))
    return max((row.step.num for row in found), default=-1) if files else None
