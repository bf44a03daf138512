"""Reads back what W&B writes offline."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32 * 1024, struct.Struct("<IHB")


def records(path: Path) -> Iterator[Record]:
    """The records of a .wandb file: LevelDB's log format behind a header of seven bytes."""
    content, position, message = path.read_bytes(), 7, b""
    while position + HEADER.size <= len(content):
        if BLOCK - position % BLOCK < HEADER.size:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = HEADER.unpack_from(content, position)
        message += content[position + HEADER.size : position + HEADER.size + length]
        position += HEADER.size + length
        if kind in (1, 4):  # the whole, or the last piece, of a record
            yield Record.FromString(message)
            message = b""
