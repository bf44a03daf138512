"""Rows of JSON files: one object per line, or the items of one list.

A list is parsed as a whole once, for the offsets of its items, and then item by item. Trade-off: the first pass reads the
whole file into memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from ulmfit_dist.data.sources.base import BadRow, ParsedRow, ReadOptions, Row
from ulmfit_dist.data.sources.cells import check_cells
from ulmfit_dist.data.sources.line_stream import DECODE_ERRORS, UNREADABLE, LineStream
from ulmfit_dist.errors import UserError

SPACES = " \t\r\n"
ESCAPED = "surrogateescape"
"""Codec error handler that keeps bytes which cannot be decoded, so that characters can be counted in bytes."""


def json_row(text: str, options: ReadOptions, position: str) -> Row | BadRow:
    """Return the row of one line of JSON; `position` is its name in messages, such as `line 3`."""
    if UNREADABLE in text and options.on_error == "skip":
        return BadRow(f"{position} has bytes that cannot be decoded")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRow(f"{position} is not JSON ({error})")
    return _checked(value, options, position)


def scan_list(stream: LineStream, options: ReadOptions) -> Iterator[ParsedRow]:
    """Yield the items of a list with their offsets; the stream is then at its end.

    Raises:
        UserError: the list is not JSON.
    """
    content = b"".join(iter(lambda: stream.read(1 << 20), b""))
    is_strict = options.on_error == "strict"
    text = _decode(content, stream, options) if is_strict else content.decode("utf-8", ESCAPED)
    decoder, number = json.JSONDecoder(), 0
    offset = counted = 0  # bytes of the first `counted` characters
    position = _skip_spaces(text, text.index("[") + 1)
    while text[position : position + 1] != "]" or number > 0:
        number += 1
        offset, counted = offset + len(text[counted:position].encode("utf-8", ESCAPED)), position
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{stream.file}: begins as a JSON list, but item {number} is not JSON ({error})") from None
        item = text[counted:position]
        if not is_strict and not item.isascii():
            item = _decode(item.encode("utf-8", ESCAPED), stream, options)
            value = json.loads(item)
        yield ParsedRow(_item(value, item, options, number), number, offset)
        position = _skip_spaces(text, position)
        if text[position : position + 1] != ",":
            break
        position = _skip_spaces(text, position + 1)
    if text[position : position + 1] != "]" or text[position + 1 :].strip():
        raise UserError(f"{stream.file}: begins as a JSON list, but is not JSON after item {number}")


def read_items(
    stream: LineStream, options: ReadOptions, offsets: Sequence[int], start: int, stop: int
) -> Iterator[Row | BadRow]:
    """Yield items `start` to `stop` of a list, given the offsets of all items and of the end."""
    for number in range(start, stop):
        stream.seek(offsets[number])
        text = _decode(stream.read(offsets[number + 1] - offsets[number]), stream, options)
        try:
            value, end = json.JSONDecoder().raw_decode(text)
        except ValueError:
            raise UserError(f"{stream.file}: changed while it was being read: start again") from None
        yield _item(value, text[:end], options, number + 1)


def _item(value: Any, text: str, options: ReadOptions, number: int) -> Row | BadRow:
    if UNREADABLE in text and options.on_error == "skip":
        return BadRow(f"item {number} has bytes that cannot be decoded")
    return _checked(value, options, f"item {number}")


def _checked(value: Any, options: ReadOptions, position: str) -> Row | BadRow:
    if not isinstance(value, dict):
        return BadRow(f"{position} is not a JSON object")
    missing = next((column for column in options.text if column not in value), None)
    return check_cells(value, options, position) if missing is None else BadRow(f"{position} has no {missing!r}")


def _decode(content: bytes, stream: LineStream, options: ReadOptions) -> str:
    try:
        return content.decode("utf-8", DECODE_ERRORS[options.on_error])
    except UnicodeDecodeError as error:
        raise UserError(
            f"{stream.file}: byte {error.start + 1} is not UTF-8: convert the file, set data.encoding (such as cp1252), or "
            f"set data.on_error to replace or skip"
        ) from None


def _skip_spaces(text: str, position: int) -> int:
    while text[position : position + 1] in tuple(SPACES):
        position += 1
    return position
