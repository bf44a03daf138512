"""Rows from JSON: a value, or the items of a list, which is parsed as a whole once and then item by item."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ulmfit_dist.data.sources.base import BadRow, ParsedRow, ReadOptions, Row
from ulmfit_dist.data.sources.cells import check_cells
from ulmfit_dist.data.sources.line_stream import DECODE_ERRORS, UNREADABLE, LineStream
from ulmfit_dist.errors import UserError

SPACES = " \t\r\n"


def json_row(text: str, options: ReadOptions, where: str) -> Row | BadRow:
    """Return the row that one line of JSON, at the place `where`, holds."""
    if UNREADABLE in text and options.on_error == "skip":
        return BadRow(f"{where} has bytes that cannot be decoded")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRow(f"{where} is not JSON ({error})")
    return _checked(value, options, where)


def scan_list(stream: LineStream, options: ReadOptions) -> Iterator[ParsedRow]:
    """Return the items of a list with their offsets; the stream's position is then that of the list's end.

    Raises:
        UserError: it is not JSON.
    """
    text = _decode(b"".join(iter(lambda: stream.read(1 << 20), b"")), stream, options)
    decoder, number = json.JSONDecoder(), 0
    offset = counted = 0  # the first `counted` characters have `offset` bytes
    position = _skip_spaces(text, text.index("[") + 1)
    while text[position : position + 1] != "]" or number > 0:
        number += 1
        offset, counted = offset + len(text[counted:position].encode()), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{stream.file}: begins as a list, and is not JSON (item {number}: {error})") from None
        yield ParsedRow(_item(value, text[counted:position], options, number), number, offset)
        position = _skip_spaces(text, position)
        if text[position : position + 1] != ",":
            break
        position = _skip_spaces(text, position + 1)
    if text[position : position + 1] != "]" or text[position + 1 :].strip():
        raise UserError(f"{stream.file}: begins as a list, and is not JSON (behind item {number})")


def read_items(
    stream: LineStream, options: ReadOptions, offsets: Sequence[int], start: int, stop: int
) -> Iterator[Row | BadRow]:
    """Return items `start` to `stop` of a list by the offsets of all items and of the end."""
    for number in range(start, stop):
        stream.seek(offsets[number])
        text = _decode(stream.read(offsets[number + 1] - offsets[number]), stream, options)
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            raise UserError(f"{stream.file}: has changed while it was read: start again") from None
        yield _item(value, text[:end], options, number + 1)


def _item(value: Any, text: str, options: ReadOptions, number: int) -> Row | BadRow:
    if UNREADABLE in text and options.on_error == "skip":
        return BadRow(f"item {number} has bytes that cannot be decoded")
    return _checked(value, options, f"item {number}")


def _checked(value: Any, options: ReadOptions, where: str) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow(f"{where} is not a JSON object")
    missing = next((column for column in options.text if column not in value), None)
    return check_cells(value, options, where) if missing is None else BadRow(f"{where} has no {missing!r}")


def _decode(content: bytes, stream: LineStream, options: ReadOptions) -> str:
    try:
        return content.decode("utf-8", DECODE_ERRORS[options.on_error])
    except UnicodeDecodeError as error:
        raise UserError(
            f"{stream.file}: byte {error.start + 1} is not UTF-8: convert the file, name its encoding by data.encoding "
            f"(such as cp1252), or set data.on_error to replace or skip"
        ) from None


def _skip_spaces(text: str, position: int) -> int:
    while text[position : position + 1] in tuple(SPACES):
        position += 1
    return position
