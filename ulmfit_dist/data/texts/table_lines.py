"""Lines of CSV and JSON, read one at a time, so that a bad one can be named, mended or left out (`data.on_error`)."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ulmfit_dist.errors import UserError

Row = dict[str, str | None]
VERSION = 2
"""Changes when the same files give other rows."""
COLUMNS_FROM = 1000
"""Lines of JSON that are read for the names of columns: each says its own."""

UNREADABLE = "\ufdd0"
"""A noncharacter of Unicode: stands for what cannot be read, until the document is skipped."""


class BadLineError(Exception):
    """A line that holds no row. The message says why, beginning where the line's number ends."""


Rows = Iterator[tuple[int, Row | BadLineError]]
"""Rows, or why there is none, with the numbers of the lines on which they begin."""


def read_lines(
    kind: str,
    files: Sequence[str],
    text: Sequence[str],
    label: str | None,
    on_error: str,
    label_delim: str = ";",
    columns: Sequence[str] = (),
) -> Iterator[Row]:
    """The rows of files, in order.

    Args:
        kind: csv, or json for JSON lines and lists.
        files: their names; those that end in .tsv are CSV with tabs.
        text: columns of text.
        label: column of labels, which a row of JSON may lack.
        label_delim: what joins a list of labels.
        on_error: strict; replace, which reads bytes that are not UTF-8 as U+FFFD; skip.
        columns: all that are wanted, where others are wanted beside text and label; a row of JSON may lack those.

    Yields:
        Values by column. In a row that is to be skipped, `UNREADABLE` stands in each column but that of labels.

    Raises:
        UserError: a line is no row (which only skip allows for), or has bytes that are not UTF-8; a file cannot be read.
    """
    columns = columns or [*text, *([label] if label is not None else [])]
    skipped: Row = dict.fromkeys(columns, UNREADABLE) | ({label: None} if label is not None else {})
    for file in files:
        for number, row in _READERS[kind](Path(file), columns, text, label, on_error, label_delim):
            if not isinstance(row, BadLineError):
                yield row
            elif on_error == "skip":
                yield skipped
            else:
                raise UserError(f"{file}, line {number}{row}: mend it, or set data.on_error=skip to leave such lines out")


def column_names(kind: str, file: Path) -> list[str]:
    """The columns of a file, from its first lines. Raises UserError where it cannot be read."""
    if kind == "csv":
        return next(csv.reader((line for _, line in _decoded(file, on_error="replace")), delimiter=_delimiter(file)), [])
    names: dict[str, None] = {}
    for _, row in islice(_objects(file, on_error="replace"), COLUMNS_FROM):
        names |= dict.fromkeys(row if isinstance(row, dict) else ())
    return list(names)


def _csv_rows(
    file: Path, columns: Sequence[str], text: Sequence[str], label: str | None, on_error: str, label_delim: str
) -> Rows:
    csv.field_size_limit(sys.maxsize)  # Python's own is 128 KiB
    lines = (line for _, line in _decoded(file, on_error))
    reader = csv.reader(lines, delimiter=_delimiter(file), strict=True)
    header = next(reader, [])
    if missing := [name for name in columns if name not in header]:
        raise UserError(f"{file}: no column {missing[0]!r}, which other files of this split have")
    wanted = {name: header.index(name) for name in columns}
    while True:
        number = reader.line_num + 1
        try:
            values = next(reader, None)
        except csv.Error as error:
            if "unexpected end" in str(error):  # to skip it would be to skip all lines behind it
                raise UserError(f"{file}, line {number}: a quote that opens here is never closed: mend it") from None
            yield number, BadLineError(f": {error}")
            continue
        if values is None:
            return
        if len(values) == len(header):
            yield number, {name: values[i] for name, i in wanted.items()}
        elif values:  # an empty line is none
            yield number, BadLineError(f" has {len(values)} fields, the header has {len(header)}")


def _json_rows(
    file: Path, columns: Sequence[str], text: Sequence[str], label: str | None, on_error: str, label_delim: str
) -> Rows:
    for number, row in _objects(file, on_error):
        try:
            yield number, _json_row(row, columns, text, label, label_delim)
        except BadLineError as error:
            yield number, error


def _json_row(row: Any, columns: Sequence[str], text: Sequence[str], label: str | None, label_delim: str) -> Row:
    if isinstance(row, BadLineError):
        raise row
    if not isinstance(row, dict):
        raise BadLineError(" is not a JSON object")
    for column in text:
        if column not in row:
            raise BadLineError(f" has no {column!r}")
    values: Row = {column: _as_text(row.get(column)) for column in columns}
    return values if label is None else {**values, label: _as_label(row.get(label), label_delim)}


def _objects(file: Path, on_error: str) -> Iterator[tuple[int, Any]]:
    """What the lines of a file say in JSON, or why they do not, with their numbers; or the items of a JSON list."""
    for number, line in _decoded(file, on_error):
        if number == 1 and line.lstrip().startswith("["):
            yield from _items(file, on_error)
            return
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                yield number, BadLineError(f" is not JSON ({error})")


def _items(file: Path, on_error: str) -> Iterator[tuple[int, Any]]:
    try:
        yield from enumerate(json.loads("".join(line for _, line in _decoded(file, on_error))), start=1)
    except ValueError as error:
        raise UserError(f"{file}: begins as a list, and is not JSON ({error})") from None


def _as_text(value: Any) -> str:
    text = "" if value is None else str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadLineError(" has half of a surrogate pair, which is no character") from None
    return text


def _as_label(value: Any, label_delim: str) -> str | None:
    if isinstance(value, list):
        return label_delim.join(map(str, value)) or label_delim
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else str(value)


def _decoded(file: Path, on_error: str) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1."""
    try:
        with file.open("rb") as binary:
            for number, line in enumerate(binary, start=1):
                yield number, _decode(line, file, number, on_error)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None


def _decode(line: bytes, file: Path, number: int, on_error: str) -> str:
    encoding = "utf-8-sig" if number == 1 else "utf-8"
    try:
        return line.decode(encoding)
    except UnicodeDecodeError as error:
        if on_error == "strict":
            raise UserError(
                f"{file}, line {number}: byte {error.start + 1} of it is not UTF-8: convert the file, or set data.on_error "
                f"to replace or skip"
            ) from None
        return line.decode(encoding, errors="replace").replace("\ufffd", UNREADABLE if on_error == "skip" else "\ufffd")


def _delimiter(file: Path) -> str:
    """What separates columns: a semicolon where the header has some and no comma, as many spreadsheets write it."""
    if file.suffix == ".tsv":
        return "\t"
    _, header = next(_decoded(file, on_error="replace"), (1, ""))
    return ";" if ";" in header and "," not in header else ","


_READERS = {"csv": _csv_rows, "json": _json_rows}
