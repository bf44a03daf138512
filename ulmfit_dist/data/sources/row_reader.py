"""Row reader for CSV and JSON files: one indexing pass, then random access to rows.

The indexing pass (`index_file`) checks every row, so a bad row is reported before any is tokenized, hashes the content, and
records the offset of every 256th row. Rows are then read in place; no copy is made. Trade-off: a file is parsed twice.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from ulmfit_dist.data.sources.base import BadRow, ParsedRow, ReadOptions, Row
from ulmfit_dist.data.sources.cells import check_cells
from ulmfit_dist.data.sources.csv_format import CsvFormat, QuotedCells, SwallowedRows, read_csv_format
from ulmfit_dist.data.sources.json_values import json_row, read_items, scan_list
from ulmfit_dist.data.sources.line_stream import DECODE_ERRORS, UNREADABLE, LineStream
from ulmfit_dist.errors import UserError

VERSION = 1
"""Version of the reader; increased when the same files give other rows."""
STRIDE = 256
"""Rows between two offsets of the index."""
COLUMNS_FROM = 1000
"""Rows of JSON from which the names of columns are collected."""


@dataclass
class FileIndex:
    """Index of a CSV or JSON file.

    Attributes:
        digest: xxh3 of the decompressed content in UTF-8, hexadecimal.
        num_rows: number of rows, unreadable ones included.
        columns: names of the columns.
        is_list: the file is one JSON list; then each item has an offset, and so has the end.
        offsets: offset of every 256th row in the stream.
        lines: line, or item of a JSON list, on which those rows begin.
        notices: messages about suspicious content.
    """

    digest: str
    num_rows: int
    columns: list[str]
    is_list: bool
    offsets: list[int]
    lines: list[int]
    notices: list[str] = field(default_factory=list)


class FileRows:
    """Rows of one CSV or JSON file, read from any row on; picklable.

    Args:
        file: path of the file.
        options: options for reading it.
        index: index of the file with these options.
    """

    def __init__(self, file: Path, options: ReadOptions, index: FileIndex):
        self.file, self.options, self.index = file, options, index
        self.columns, self.label_names = index.columns, dict[str, list[str]]()
        self._stream: LineStream | None = None
        self._parsed: Iterator[ParsedRow] | None = None
        self._next_row = 0

    def __len__(self) -> int:
        return self.index.num_rows

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "options": self.options, "index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def rows(self, start: int, stop: int, columns: Sequence[str] = ()) -> Iterator[Row | BadRow]:
        """Yield rows `start` to `stop` with all columns. Raises UserError if the file cannot be read or has changed."""
        if self.index.is_list:
            yield from read_items(self._open_list(), self.options, self.index.offsets, start, stop)
            return
        nearest = start // STRIDE
        if self._parsed is None or not nearest * STRIDE <= self._next_row <= start:
            self._start_at(nearest)
        for _ in range(start - self._next_row):
            self._take()
        for _ in range(stop - start):
            yield self._take()

    def _start_at(self, number: int) -> None:
        """Open the file at an offset of the index."""
        self._close()
        self._stream = LineStream(self.file, self.options.encoding, self.options.on_error)
        self._stream.seek(self.index.offsets[number])
        self._next_row = number * STRIDE
        self._parsed = parse_rows(self._stream, self.options, self.index.lines[number], self._format())

    def _open_list(self) -> LineStream:
        if self._stream is None:
            self._stream = LineStream(self.file, self.options.encoding, self.options.on_error)
        return self._stream

    def _format(self) -> CsvFormat | None:
        if self.options.file_format == "json":
            return None
        header = LineStream(self.file, self.options.encoding, self.options.on_error)
        try:
            return read_csv_format(header, self.options.quoting, self.options.required)[0]
        finally:
            header.close()

    def _take(self) -> Row | BadRow:
        parsed = next(self._parsed, None) if self._parsed is not None else None
        if parsed is None:
            raise UserError(f"{self.file}: changed while it was being read: start again")
        self._next_row += 1
        return parsed.row

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = self._parsed = None


def index_file(file: Path, options: ReadOptions) -> FileIndex:
    """Read a file once: check all rows, hash the content, and record where rows begin.

    Raises:
        UserError: the file cannot be read, or the header has a column twice; a bad row, unless `on_error` is skip.
    """
    stream = _Hashed(file, options.encoding, options.on_error)
    try:
        form, line = _read_form(stream, options)
        is_list = _is_list(file, options)
        index = FileIndex("", 0, [] if form is None else form.columns, is_list, [], [])
        _check_rows(
            scan_list(stream, options) if is_list else parse_rows(stream, options, line, form), file, options, form, index
        )
        index.digest = stream.hash.hexdigest()
        if is_list:
            index.offsets.append(stream.position)
        return index
    finally:
        stream.close()


def first_rows(file: Path, options: ReadOptions, num_rows: int) -> Iterator[Row | BadRow]:
    """Yield the first rows of a file, without an index. Raises UserError if the file cannot be read."""
    stream = LineStream(file, options.encoding, options.on_error)
    try:
        form, line = _read_form(stream, options)
        parsed = scan_list(stream, options) if _is_list(file, options) else parse_rows(stream, options, line, form)
        for row in islice(parsed, num_rows):
            yield row.row
    finally:
        stream.close()


def _read_form(stream: LineStream, options: ReadOptions) -> tuple[CsvFormat | None, int]:
    """Return the CSV format, None for JSON, and the number of the first line of rows."""
    return (None, 1) if options.file_format == "json" else read_csv_format(stream, options.quoting, options.required)


def _check_rows(
    rows: Iterator[ParsedRow], file: Path, options: ReadOptions, form: CsvFormat | None, index: FileIndex
) -> None:
    """Check all rows and fill the index. Raises UserError for a bad row, unless `on_error` is skip."""
    swallowed = SwallowedRows(file, index.columns, options.label)
    quoted = QuotedCells(file) if form is not None and not form.quoting else None
    columns: dict[str, None] = dict.fromkeys(index.columns)
    for parsed in rows:
        if isinstance(parsed.row, BadRow):
            if options.on_error != "skip":
                raise UserError(f"{file}, {parsed.row.reason}: fix it, or set data.on_error=skip to leave such rows out")
        elif form is None and index.num_rows < COLUMNS_FROM:
            columns |= dict.fromkeys(parsed.row)
        elif quoted is not None:
            quoted.add(parsed.row, parsed.line)
        if index.is_list or index.num_rows % STRIDE == 0:
            index.offsets.append(parsed.offset)
            index.lines.append(parsed.line)
        if form is not None:
            swallowed.add(parsed.row, parsed.line, parsed.cell_lines)
        index.num_rows += 1
    index.columns = list(columns)
    index.notices = [*swallowed.notices(), *(quoted.notices() if quoted is not None else [])]


def parse_rows(stream: LineStream, options: ReadOptions, line: int, form: CsvFormat | None) -> Iterator[ParsedRow]:
    """Return an iterator over the rows from the stream's position on, which must be the beginning of a row.

    Args:
        line: number of the line at that position.
        form: format of a CSV file; None for JSON lines.
    """
    return _json_rows(stream, options, line) if form is None else _csv_rows(stream, options, line, form)


class _Hashed(LineStream):
    """Line stream that hashes the bytes read from it."""

    def __init__(self, file: Path, encoding: str | None, on_error: str):
        self.hash = xxhash.xxh3_128()
        super().__init__(file, encoding, on_error)

    def __next__(self) -> bytes:
        line = super().__next__()
        self.hash.update(line)
        return line

    def read(self, size: int) -> bytes:
        block = super().read(size)
        self.hash.update(block)
        return block


class _Lines:
    """Iterator over the decoded lines of a stream, for `csv.reader`, with the number of the last one."""

    def __init__(self, stream: LineStream, on_error: str, line: int):
        self.stream, self.number, self.kept = stream, line - 1, list[str]()
        self._errors, self._strict = DECODE_ERRORS[on_error], on_error == "strict"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.stream)
        self.number += 1
        try:
            text = line.decode("utf-8", self._errors)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{self.stream.file}, line {self.number}: byte {error.start + 1} of the line is not UTF-8: convert the "
                f"file, set data.encoding (such as cp1252), or set data.on_error to replace or skip"
            ) from None
        self.kept.append(text)
        return text


def _csv_rows(stream: LineStream, options: ReadOptions, line: int, form: CsvFormat) -> Iterator[ParsedRow]:
    csv.field_size_limit(sys.maxsize)  # the default is 128 KiB
    lines = _Lines(stream, options.on_error, line)
    reader = form.reader(lines)
    width, columns = len(form.columns), form.columns
    is_checked = set(options.required) <= set(columns)
    while True:
        offset, first = stream.position, lines.number + 1
        lines.kept.clear()
        row: Row | BadRow
        try:
            values = next(reader, None)
        except csv.Error as error:
            if "unexpected end" in str(error):  # skipping the row would skip all rows after it
                raise UserError(
                    f"{stream.file}, line {first}: the quote that opens here is never closed: close it, or set "
                    f"data.quoting=false if quote characters belong to the texts"
                ) from None
            advice = " (set data.quoting=false if quote characters belong to the texts)" if form.quoting else ""
            yield ParsedRow(BadRow(f"line {first}: {error}{advice}"), first, offset)
            continue
        if values is None:
            return
        if not values:  # an empty line
            continue
        if not form.quoting and any("\r" in text.rstrip("\r\n") for text in lines.kept):
            row = BadRow(f"line {first} has a carriage return within it, which may be the end of a row")
        elif len(values) == width:
            row = dict(zip(columns, values, strict=True))
            row = check_cells(row, options, f"line {first}") if is_checked else row
        else:
            row = BadRow(f"line {first} has {len(values)} fields, but the header has {width}{form.advice}")
        if options.on_error == "skip" and any(UNREADABLE in text for text in lines.kept):
            row = BadRow(f"line {first} has bytes that cannot be decoded")
        yield ParsedRow(row, first, offset, tuple(lines.kept) if len(lines.kept) > 1 else ())


def _json_rows(stream: LineStream, options: ReadOptions, line: int) -> Iterator[ParsedRow]:
    lines = _Lines(stream, options.on_error, line)
    offset = stream.position
    for text in lines:
        if text.strip().strip("\ufeff"):
            yield ParsedRow(json_row(text.lstrip("\ufeff"), options, f"line {lines.number}"), lines.number, offset)
        offset = stream.position
        lines.kept.clear()


def _is_list(file: Path, options: ReadOptions) -> bool:
    """Return whether a file is one JSON list, not JSON lines or CSV."""
    if options.file_format != "json":
        return False
    stream = LineStream(file, options.encoding, options.on_error)
    try:
        return next((line for line in stream if line.strip()), b"").lstrip().startswith(b"[")
    finally:
        stream.close()
