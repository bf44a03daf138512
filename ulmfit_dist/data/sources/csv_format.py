"""What the first lines of a CSV or TSV file say of its form: delimiter, quoting and columns."""

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
EXCELS_FIRST_LINE = re.compile(r'^"?sep=(?P<delimiter>.)"?\s*$', re.IGNORECASE)
MOST_LABELS = 1000
"""Distinct labels that lines within a cell are compared with."""


@dataclass(frozen=True)
class CsvFormat:
    """Form of a file of separated values.

    Attributes:
        delimiter: character between fields.
        quoting: whether fields may stand in quotes.
        columns: names of the columns, without spaces around them.
    """

    delimiter: str
    quoting: bool
    columns: list[str]

    def reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        """Return the fields of each row."""
        if self.quoting:
            return csv.reader(lines, delimiter=self.delimiter, strict=True)
        return ([] if not (row := line.rstrip("\r\n")) else row.split(self.delimiter) for line in lines)

    @property
    def advice(self) -> str:
        """What to try where a row has another number of fields."""
        return "" if self.quoting else " (data.quoting=true if fields stand in quotes)"


def read_csv_format(stream: LineStream, quoting: bool | None, wanted: Sequence[str]) -> tuple[CsvFormat, int]:
    """Read the header of a file, and what comes before it, from a stream at its beginning.

    Excel's line `sep=;` sets the delimiter; blank lines are left out. Else it is the first of comma, semicolon and tab by
    which the header has all columns that are wanted; in a .tsv file it is the tab.

    Args:
        quoting: `data.quoting`; None: quotes in CSV, none in TSV.
        wanted: columns that must be there; none: the delimiter is the first one that gives several columns.

    Returns:
        The form, and the number of the line after the header.

    Raises:
        UserError: a column that is wanted is missing or there twice.
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
        if match := EXCELS_FIRST_LINE.match(text) if number == 1 else None:
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
        if wanted and set(wanted) <= set(headers[delimiter]):
            break
    else:
        delimiter = max(headers, key=lambda delimiter: (len(headers[delimiter]) > 1, -delimiters.index(delimiter)))
    form = CsvFormat(delimiter, quoting, headers[delimiter])
    _check_header(form, wanted, stream.file)
    return form, number + 1


def _fields(form: CsvFormat, line: str) -> list[str]:
    try:
        return next(iter(form.reader([line])), [])
    except csv.Error:  # quotes that another delimiter ends
        return line.rstrip("\r\n").split(form.delimiter)


def _long_header(form: CsvFormat, lines: list[str], rest: Iterator[str], number: int) -> tuple[list[str], int]:
    """Fields of a header of several lines; `lines` grows by those that are read."""
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


def _check_header(form: CsvFormat, wanted: Sequence[str], file: Path) -> None:
    for column in wanted:
        if form.columns.count(column) > 1:
            raise UserError(f"{file}: column {column!r} is there twice: rename one of the two")
        if column not in form.columns and f'"{column}"' in form.columns:
            raise UserError(f"{file}: its column names stand in quotes: set data.quoting=true")


class QuotedCells:
    """Cells of a file without quoting that look as if they stood in quotes: with signs at both ends, and doubled within."""

    def __init__(self, file: Path):
        self.file, self.first, self.count = file, 0, 0

    def add(self, row: Row, line: int) -> None:
        if any(cell[:1] == cell[-1:] == '"' and len(cell) > 1 and '""' in cell[1:-1] for cell in row.values()):
            self.first, self.count = self.first or line, self.count + 1

    def notices(self) -> list[str]:
        if not self.count:
            return []
        return [
            f"{self.file}: {self.count:,} row(s), the first in line {self.first}, have cells that stand in quotes and "
            f"double those within: if that is quoting, set data.quoting=true"
        ]


class SwallowedRows:
    """Cells of several lines that look as if a quote sign in a text had swallowed the rows after it.

    Such a cell holds a line whose last field, or the one in the column of labels, is the label of other rows.
    """

    def __init__(self, file: Path, columns: Sequence[str], label: str | None):
        self.file, self.label = file, label
        self.place = columns.index(label) - len(columns) if label in columns else None  # from the end
        self.known: set[Any] = set()
        self.suspects: list[tuple[int, int, set[str]]] = []

    def add(self, row: Row | BadRow, line: int, cell_lines: Sequence[str]) -> None:
        """Take note of a row: of its label, or of the lines that it spans."""
        if self.place is None or isinstance(row, BadRow):
            return
        if not cell_lines:
            if len(self.known) < MOST_LABELS:
                self.known.add(row[self.label])  # type: ignore[index]
        elif len(self.suspects) < MOST_LABELS:
            inner = [re.split(r"[,;\t]", text.strip()) for text in cell_lines[:-1]]
            fields = {parts[self.place].strip(' "') for parts in inner if 1 < len(parts) >= -self.place}
            self.suspects.append((line, line + len(cell_lines) - 1, fields))

    def notices(self) -> list[str]:
        found = [(first, last) for first, last, fields in self.suspects if fields & self.known]
        if not found:
            return []
        first, last = found[0]
        more = f", and {len(found) - 1:,} more such rows" if len(found) > 1 else ""
        return [
            f"{self.file}, lines {first} to {last}: one cell spans them and holds what looks like rows{more}: if quote "
            f"signs belong to the texts, set data.quoting=false"
        ]
