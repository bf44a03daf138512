"""Table source: texts and labels from rows of CSV, JSON, Parquet, a hub data set, or texts given in Python (`in_memory.py`).

Files are read in place (`row_reader.py`, `parquet.py`), hub data sets through `datasets`. Documents are in the order of the
rows, file by file in natural order of their names. Trade-off: rows are converted in Python, one at a time, which bounds
memory and names a bad row, but is slower than columns.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.sources.base import BadRow, Row, as_flag
from ulmfit_dist.data.sources.cells import BadCell, join_fields, label_name, text_of_cell
from ulmfit_dist.errors import UserError


class RowFile(Protocol):
    """Rows of one file or data set."""

    columns: list[str]
    label_names: dict[str, list[str]]

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row | BadRow]: ...


@dataclass
class Table:
    """Concatenated rows of the files of one split.

    Attributes:
        files: name, for messages, and rows of each file.
        label_names: class names by column of class indices.
    """

    files: Sequence[tuple[str, RowFile]]
    label_names: dict[str, list[str]]

    def __post_init__(self) -> None:
        self.starts = np.cumsum([0, *(len(rows) for _, rows in self.files)]).tolist()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[tuple[str, int, Row | BadRow]]:
        """Yield rows `start` to `stop`, each with the name of its file and its row number there, from 1."""
        while start < stop:
            i = bisect.bisect_right(self.starts, start) - 1
            (name, rows), first, end = self.files[i], self.starts[i], min(stop, self.starts[i + 1])
            for number, row in enumerate(rows.rows(start - first, end - first, columns), start=start - first + 1):
                yield name, number, row
            start = end


@dataclass
class TableSource:
    """One split of a table.

    Attributes:
        table: rows of the split's files.
        text: text columns.
        label: label column; None for no labels.
        on_error: `data.on_error`.
        label_delim: separator that joins a list of labels.
        missing_label: label that means none.
        columns: all columns, for user-defined functions.
        as_strings: convert cells to strings for user-defined functions.
        numbers: selected rows, int64 [documents]; None for all.
    """

    table: Table
    text: Sequence[str]
    label: str | None
    on_error: str
    label_delim: str
    missing_label: str | None
    columns: Sequence[str]
    as_strings: bool = False
    numbers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.table) if self.numbers is None else len(self.numbers)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        columns = list(dict.fromkeys([*self.text, *([self.label] if self.label is not None else [])]))
        texts: list[str | None] = []
        labels: list[str | None] = []
        for name, number, row in self._rows(start, stop, columns):
            text, label = self._cells(name, number, row)
            texts.append(text)
            labels.append(label)
        return texts, labels

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Row | None]]:
        for name, number, row in self._rows(start, stop, self.columns):
            if isinstance(row, BadRow) or self._cells(name, number, row)[0] is None:
                yield f"{name}, row {number}", None
            else:
                yield f"{name}, row {number}", self._as_strings(row) if self.as_strings else row

    def pick(self, numbers: np.ndarray, labelled: bool) -> TableSource:
        chosen = numbers if self.numbers is None else self.numbers[numbers]
        return replace(self, numbers=chosen, label=self.label if labelled else None)

    def flags(self, column: str) -> np.ndarray:
        """Return a boolean column, bool [rows]. Raises UserError for another value."""
        flags = np.zeros(len(self), dtype=bool)
        for i, (name, number, row) in enumerate(self._rows(0, len(self), [column])):
            flag = False if isinstance(row, BadRow) else as_flag(row.get(column))
            if flag is None:
                value = row[column] if not isinstance(row, BadRow) and column in row else None
                raise UserError(f"{name}, row {number}: {value!r} in data.valid_col={column}: expected true or false")
            flags[i] = flag
        return flags

    def _rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[tuple[str, int, Row | BadRow]]:
        stop = min(stop, len(self))
        if self.numbers is None:
            yield from self.table.rows(start, stop, columns)
            return
        for number in self.numbers[start:stop].tolist():
            yield from self.table.rows(number, number + 1, columns)

    def _as_strings(self, row: Row) -> Row:
        return {column: "" if row.get(column) is None else str(row[column]) for column in self.columns}

    def _cells(self, name: str, number: int, row: Row | BadRow) -> tuple[str | None, str | None]:
        """Return text and label of a row; two times None for a bad row that is skipped. Raises UserError for others."""
        try:
            if isinstance(row, BadRow):
                raise BadCell(f": {row.reason}")
            text = join_fields([text_of_cell(row.get(column), column, self.on_error) for column in self.text])
            if self.label is None:
                return text, None
            names = self.table.label_names.get(self.label)
            return text, label_name(row.get(self.label), self.label_delim, self.missing_label, names, self.label)
        except BadCell as error:
            if self.on_error == "skip":
                return None, None
            raise UserError(
                f"{name}, row {number}{error}: fix it, or set data.on_error=skip to leave such rows out"
            ) from None


def cut_by_column(splits: dict[str, TableSource], column: str) -> dict[str, TableSource]:
    """Divide the train split into train and valid, by a boolean column. Raises UserError."""
    if "valid" in splits:
        raise UserError(f"data.valid_col={column}: the source also has a valid split: leave one of the two out")
    flags = splits["train"].flags(column)
    parts = {"train": np.flatnonzero(~flags), "valid": np.flatnonzero(flags)}
    cut = {split: splits["train"].pick(numbers, labelled=True) for split, numbers in parts.items()}
    return {**cut, **{split: rows for split, rows in splits.items() if split != "train"}}


def column_key(config: DataConfig, split: str) -> dict[str, str]:
    """Return the columns that a split must have, with the config keys that name them."""
    columns = dict.fromkeys(config.text_col, "text_col" if config.file_col is None else "file_col")
    if (label := label_column(config, split)) is not None:
        columns[label] = "label_col"
    if config.valid_col is not None and split == "train":
        columns[config.valid_col] = "valid_col"
    return columns


def check_columns(present: Sequence[str], columns: dict[str, str], origin: str) -> None:
    """Check that all columns are present. Raises UserError."""
    for column, key in columns.items():
        if column not in present:
            named = ", ".join(name if name.isprintable() else ascii(name) for name in map(str, present))
            raise UserError(f"{origin}: no column {column!r} for data.{key}; its columns are: {named}")


def columns_identity(config: DataConfig) -> dict[str, Any]:
    """Return the config of columns for the fingerprint of the token store; defaults are left out."""
    keys = ("valid_col", "label_delim", "missing_label")
    changed = {key: value for key in keys if (value := getattr(config, key)) != getattr(DataConfig, key)}
    return {"text_col": list(config.text_col), "label_col": config.label_col if config.get_y is None else None, **changed}


def label_column(config: DataConfig, split: str) -> str | None:
    """Return the label column of a split; None if labels are not read from a column."""
    return None if split == "unlabelled" or config.get_y is not None else config.label_col
