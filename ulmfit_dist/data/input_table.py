"""Input tables: the rows of a file or folder in blocks, with all columns, for commands that add columns to them.

Rows come from the readers of training (`sources/`), so a text is composed of its columns as the model has read it. A block
has a fixed range of rows, whatever the number of ranks, and is read without the blocks before it. Trade-off: a CSV or JSON
file is read twice, first for its index, which also finds a damaged row before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.parquet

from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.input_rows import TEXT, FolderRows, LineRows, MemoryRows
from ulmfit_dist.data.sources.base import BadRow, ReadOptions, Row, digest
from ulmfit_dist.data.sources.cells import BadCell, join_fields, text_of_cell
from ulmfit_dist.data.sources.content_cache import hash_file
from ulmfit_dist.data.sources.csv_format import CsvFormat, read_csv_format
from ulmfit_dist.data.sources.folder_walk import walk
from ulmfit_dist.data.sources.line_stream import LineStream
from ulmfit_dist.data.sources.parquet import BROKEN, ParquetRows, rows_of
from ulmfit_dist.data.sources.row_reader import FileRows, index_file
from ulmfit_dist.data.sources.table_files import table_stem
from ulmfit_dist.errors import UserError

BLOCK_ROWS = 2048
"""Maximum number of rows per block."""
BLOCK_BYTES = 1 << 24
"""Approximate maximum size of a block, in bytes, from the mean size of a row."""

Rows: TypeAlias = list[Row] | pa.Table
"""Rows with all their columns: as dictionaries, or of Parquet with their types."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a table.

    Attributes:
        start: number of the first row, from 0.
        texts: text of each row, empty if it has none.
        rows: all columns of the rows.
    """

    start: int
    texts: list[str]
    rows: Rows


class InputTable(Protocol):
    """Rows of one input.

    Attributes:
        name: path of the input, for messages.
        columns: names of the columns; of JSON lines, those of the first thousand rows.
        num_rows: number of rows.
        block_rows: rows per block, except for the last one.
        identity: changes with the content, and with the way that it is read.
    """

    name: str
    columns: list[str]
    num_rows: int
    block_rows: int
    identity: str

    def read(self, start: int, stop: int) -> Block:
        """Return rows `start` to `stop`. Raises UserError."""


class RecordTable:
    """Rows as dictionaries, from a reader of `sources/`, or in memory."""

    def __init__(self, name: str, rows: Any, text_col: Sequence[str], on_error: str, num_bytes: int, identity: str):
        self.name, self.columns, self.num_rows, self.identity = name, list(rows.columns), len(rows), identity
        self.block_rows = rows_per_block(num_bytes, self.num_rows)
        self._rows, self._text_col, self._on_error = rows, text_col, on_error

    def read(self, start: int, stop: int) -> Block:
        rows = list(self._rows.rows(start, stop, self.columns))
        named = ((row, f"{self.name}, row {number}") for number, row in enumerate(rows, start + 1))
        return Block(start, [text_of(row, self._text_col, self._on_error, name) for row, name in named], rows)


class ParquetTable:
    """Rows of a Parquet file, with their types."""

    def __init__(self, file: Path, text_col: Sequence[str], on_error: str):
        self._rows = ParquetRows(file, on_error)
        self.name, self.columns, self.num_rows = str(file), self._rows.columns, len(self._rows)
        self.schema, self._text_col, self._on_error = self._rows.schema, text_col, on_error
        metadata = pa.parquet.read_metadata(file)
        num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
        self.block_rows = rows_per_block(num_bytes, self.num_rows)
        self.identity = digest([hash_file(file), list(text_col), on_error])

    def read(self, start: int, stop: int) -> Block:
        parts = [batch.slice(first, size) for batch, first, size in self._batches(start, stop)]
        texts: list[str] = []
        for part in parts:
            number = start + len(texts)
            rows = rows_of(part.select(list(dict.fromkeys(self._text_col))), number, self._on_error, self.name)
            named = ((row, f"{self.name}, row {i}") for i, row in enumerate(rows, number + 1))
            texts += [text_of(row, self._text_col, self._on_error, name) for row, name in named]
        return Block(start, texts, pa.Table.from_batches(parts, self.schema))

    def _batches(self, start: int, stop: int) -> Iterator[tuple[pa.RecordBatch, int, int]]:
        """Yield batches with the first row and the number of rows to take from each."""
        try:
            for number, batch in self._rows.batches(start, self.columns):
                first = max(start - number, 0)
                yield batch, first, min(stop, number + len(batch)) - number - first
                if number + len(batch) >= stop:
                    return
        except BROKEN as error:
            raise UserError(f"{self.name}: cannot be read as Parquet ({' '.join(str(error).split())})") from None


def table_of_texts(texts: Sequence[str]) -> InputTable:
    """Return a table with one text per row, in the column `text`."""
    size = sum(map(len, texts))
    return RecordTable("texts", MemoryRows(texts), [TEXT], "strict", size, digest(list(texts)))


def open_input(path: Path, data: DataConfig, text_col: Sequence[str] | None = None) -> InputTable:
    """Open a CSV, TSV, JSON or Parquet file, a folder of text files, or, with any other ending, a file of lines.

    Args:
        path: the file or folder; CSV, JSON and lines may be compressed.
        data: section of the model's config, for the text columns, the encoding and the quoting; `on_error` is `strict` or
            `replace`.
        text_col: text columns; None: those of the config. Only tables have a choice.

    Raises:
        UserError: it cannot be read, has no such column, no row, or a row that is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    kind = kind_of(path)
    if kind in ("folder", "lines") and text_col is not None:
        raise UserError(f"{path}: not a table, so it has no columns: leave out --text-col")
    text_col = list(text_col or data.text_col)
    table: InputTable
    if kind == "parquet":
        table = ParquetTable(path, text_col, data.on_error)
    elif kind == "folder":
        table = _open_folder(path, data)
    elif kind == "lines":
        table = _open_lines(path, data)
    else:
        table = _open_rows(path, replace(data, source=kind), text_col)
    if kind in ("parquet", "csv", "json"):
        _check_names(table.name, table.columns, text_col)
    if isinstance(table, ParquetTable):
        _check_types(table, text_col)
    if table.num_rows == 0 and (kind == "lines" or not table.columns):
        raise UserError(f"{path}: no text in it")
    return table


def kind_of(path: Path) -> str:
    """Return the kind of an input: folder, csv, json, parquet or lines."""
    if path.is_dir():
        return "folder"
    kinds = ("csv", "json", "parquet")
    return next((kind for kind in kinds if table_stem(path.name, DataConfig(source=kind)) is not None), "lines")


def rows_per_block(num_bytes: int, num_rows: int) -> int:
    """Return the number of rows of a block: fewer if the rows are large."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES * max(1, num_rows) // max(1, num_bytes)))


def text_of(row: Row | BadRow, text_col: Sequence[str], on_error: str, name: str) -> str:
    """Return the text of a row, composed as in training. Raises UserError if there is none."""
    try:
        if isinstance(row, BadRow):
            raise BadCell(f": {row.reason}")
        return join_fields([text_of_cell(row.get(column), column, on_error) for column in text_col])
    except BadCell as error:
        raise UserError(f"{name}{error}: fix it") from None


def _open_rows(path: Path, data: DataConfig, text_col: Sequence[str]) -> InputTable:
    """Open a CSV or JSON file. Raises UserError."""
    options = ReadOptions(data.source, data.on_error, data.encoding, data.quoting, tuple(text_col))
    if data.source == "csv":
        form = _csv_format(path, options)
        doubled = next((column for column in form.columns if form.columns.count(column) > 1), None)
        if doubled is not None:
            raise UserError(f"{path}: the header has column {doubled!r} more than once: rename the others")
        _check_names(str(path), form.columns, text_col)
    index = index_file(path, options)
    num_bytes = index.offsets[-1] if index.offsets else 0
    if len(index.offsets) <= 1:
        num_bytes = path.stat().st_size
    identity = digest([index.digest, list(text_col), data.on_error, str(data.quoting)])
    return RecordTable(str(path), FileRows(path, options, index), text_col, data.on_error, num_bytes, identity)


def _csv_format(path: Path, options: ReadOptions) -> CsvFormat:
    stream = LineStream(path, options.encoding, options.on_error)
    try:
        return read_csv_format(stream, options.quoting, options.required)[0]
    finally:
        stream.close()


def _open_folder(path: Path, data: DataConfig) -> InputTable:
    """Open a folder of text files, in natural order of their names. Raises UserError."""
    listing = walk(path)
    if not listing.texts:
        raise UserError(f"{path}: no .txt file in it: give a folder of text files, or a table such as reviews.csv")
    sizes = [file.stat() for file in listing.texts]
    names = [str(file.relative_to(path)) for file in listing.texts]
    identity = digest([[name, size.st_size, size.st_mtime_ns] for name, size in zip(names, sizes, strict=True)])
    rows = FolderRows(path, listing.texts, data.encoding, data.on_error)
    return RecordTable(str(path), rows, [TEXT], data.on_error, sum(size.st_size for size in sizes), identity)


def _open_lines(path: Path, data: DataConfig) -> InputTable:
    rows = LineRows(path, data.encoding, data.on_error)
    identity = digest([rows.digest, data.on_error])
    return RecordTable(str(path), rows, [TEXT], data.on_error, rows.num_bytes, identity)


def _check_types(table: ParquetTable, text_col: Sequence[str]) -> None:
    for column in text_col:
        type_ = table.schema.field(column).type
        if pa.types.is_nested(type_) or pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
            raise UserError(f"{table.name}: column {column!r} is of type {type_}, which is not text")


def _check_names(name: str, columns: Sequence[str], text_col: Sequence[str]) -> None:
    for column in text_col:
        if column not in columns:
            listed = ", ".join(each if each.isprintable() else ascii(each) for each in columns)
            raise UserError(f"{name}: no column {column!r}; its columns are: {listed}: name the text with --text-col")
