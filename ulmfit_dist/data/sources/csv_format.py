"""Format of a CSV or TSV file, from its first lines: delimiter, quoting and columns.

The delimiter is the one by which the header has the required columns, not the one that a statistic of the rows suggests: a
comma in a text cannot mislead it. Trade-off: a file without a header cannot be read.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit_dist.data.sources.base import BadRow, Row
from ulmfit_dist.data.sources.line_stream import COMPRESSED_SUFFIXES, LineStream
from ulmfit_dist.errors import UserError

TAB_SUFFIXES = (".tsv", ".tab")
SEP_LINE = re.compile(r'^"?sep=(?P<delimiter>.)"?\s*$', re.IGNORECASE)
"""First line that Excel writes to name the delimiter."""
MOST_LABELS = 1000
"""Maximum number of distinct labels that lines within a cell are compared with."""


@dataclass(frozen=True)
class CsvFormat:
    """Format of a file of separated values.

    Attributes:
        delimiter: character between fields.
        quoting: fields may be quoted.
        columns: names of the columns, stripped.
    """

    delimiter: str
    quoting: bool
    columns: list[str]

    def reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Return an iterator over the fields of each row."""
        if self.quoting:
            return csv.reader(lines, delimiter=self.delimiter, strict=True)
        return ([] if not (row := line.rstrip("\r\n")) else row.split(self.delimiter) for line in lines)

    @property
    def advice(self) -> str:
        """Advice for a row with a wrong number of fields."""
        return "" if self.quoting else " (set data.quoting=true if fields are quoted)"


def read_csv_format(stream: LineStream, quoting: bool | None, required: Sequence[str]) -> tuple[CsvFormat, int]:
    """Read a file up to its header, from a stream at its beginning.

    Excel's line `sep=;` sets the delimiter; blank lines are skipped. Otherwise the delimiter is the first of comma,
    semicolon and tab by which the header has all required columns; in a .tsv file it is the tab.

    Args:
        quoting: `data.quoting`; None: quotes in CSV, none in TSV.
        required: columns that the header must have; if empty, the delimiter is the first one that gives several columns.

    Returns:
        The format, and the number of the line after the header.

    Raises:
        UserError: a required column occurs twice, or only in quotes that are not read.
    """
    name = stream.file.name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        name = name.removesuffix(suffix)
    is_tsv = name.endswith(TAB_SUFFIXES)
    quoting = not is_tsv if quoting is None else quoting
    delimiters: Sequence[str] = ("\t",) if is_tsv else (",", ";", "\t")
    number, lines = 0, list[str]()
    for line in stream:
        number += 1
        text = line.decode("utf-8", "replace").lstrip("\ufeff")
        if match := SEP_LINE.match(text) if number == 1 else None:
            delimiters = (match["delimiter"],)
        elif text.strip(" \t\r\n,;"):
            lines = [text]
            break
    headers = {}
    for delimiter in delimiters:
        rest = (line.decode("utf-8", "replace") for line in stream)
        form = CsvFormat(delimiter, quoting, [])
        if not lines:
            columns: list[str] = []
        elif quoting and lines[0].count('"') % 2:  # a name with a line break
            columns, number = _long_header(form, lines, rest, number)
        else:
            columns = _fields(form, lines[0])
        headers[delimiter] = [column.strip() for column in columns]
        if required and set(required) <= set(headers[delimiter]):
            break
    else:
        delimiter = max(headers, key=lambda delimiter: (len(headers[delimiter]) > 1, -delimiters.index(delimiter)))
    form = CsvFormat(delimiter, quoting, headers[delimiter])
    _check_header(form, required, stream.file)
    return form, number + 1


def _fields(form: CsvFormat, line: str) -> list[str]:
    try:
        return next(iter(form.reader([line])), [])
    except csv.Error:  # quotes that are closed only with another delimiter
        return line.rstrip("\r\n").split(form.delimiter)


def _long_header(form: CsvFormat, lines: list[str], rest: Iterator[str], number: int) -> tuple[list[str], int]:
    """Return the fields of a header that spans lines, and its last line's number; `lines` grows by those that are read."""
    num_read = len(lines)

    def chained() -> Iterator[str]:
        yield from lines[:num_read]
        for line in rest:
            lines.append(line)
            yield line

    try:
        columns = next(iter(form.reader(chained())), [])
    except csv.Error:
        columns = lines[0].split(form.delimiter)
    return columns, number + len(lines) - num_read


def _check_header(form: CsvFormat, required: Sequence[str], file: Path) -> None:
    for column in required:
        if form.columns.count(column) > 1:
            raise UserError(f"{file}: the header has column {column!r} more than once: rename the others")
        if column not in form.columns and f'"{column}"' in form.columns:
            raise UserError(f"{file}: the column names are quoted: set data.quoting=true")


class QuotedCells:
    """Counter of cells that look quoted in a file read without quoting: quotes at both ends, doubled within."""

    def __init__(self, file: Path):
        self.file, self.first, self.count = file, 0, 0

    def add(self, row: Row, line: int) -> None:
        if any(cell[:1] == cell[-1:] == '"' and len(cell) > 1 and '""' in cell[1:-1] for cell in row.values()):
            self.first, self.count = self.first or line, self.count + 1

    def notices(self) -> list[str]:
        if not self.count:
            return []
        return [
            f"{self.file}: {self.count:,} row(s), the first in line {self.first}, have cells that look quoted, with doubled "
            f"quotes within: if they are, set data.quoting=true"
        ]


class SwallowedRows:
    """Detector of rows that were read as part of one cell, because of a single quote character in a text.

    Such a cell spans lines, and in one of them the field at the label column's position is a label of other rows.
    """

    def __init__(self, file: Path, columns: Sequence[str], label: str | None):
        self.file, self.label = file, label
        self.label_index = columns.index(label) - len(columns) if label in columns else None  # from the end
        self.labels: set[Any] = set()
        self.suspects: list[tuple[int, int, set[str]]] = []

    def add(self, row: Row | BadRow, line: int, cell_lines: Sequence[str]) -> None:
        """Record the label of a row, or the fields of the lines that it spans."""
        if self.label_index is None or isinstance(row, BadRow):
            return
        if not cell_lines:
            if len(self.labels) < MOST_LABELS:
                self.labels.add(row[self.label])  # type: ignore[index]
        elif len(self.suspects) < MOST_LABELS:
            inner = [re.split(r"[,;\t]", text.strip()) for text in cell_lines[:-1]]
            fields = {parts[self.label_index].strip(' "') for parts in inner if 1 < len(parts) >= -self.label_index}
            self.suspects.append((line, line + len(cell_lines) - 1, fields))

    def notices(self) -> list[str]:
        spans = [(first, last) for first, last, fields in self.suspects if fields & self.labels]
        if not spans:
            return []
        first, last = spans[0]
        more = f", and {len(spans) - 1:,} more such rows" if len(spans) > 1 else ""
        return [
            f"{self.file}, lines {first} to {last}: one cell spans these lines and looks like several rows{more}: if quote "
            f"characters belong to the texts, set data.quoting=false"
        ]
