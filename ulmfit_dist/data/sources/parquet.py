"""Rows of Parquet files and of Hugging Face data sets, read from any row on.

Sequential reads continue the current batch; a jump starts at the row group of the row. Trade-off: random access decodes up
to one row group per row.
"""

from __future__ import annotations

import bisect
import json
import pickle
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from ulmfit_dist.data.sources.base import BadRow, Row
from ulmfit_dist.data.sources.line_stream import UNREADABLE
from ulmfit_dist.errors import UserError

MAPPED_ROWS = 10_000
"""Rows of a data set that are read before its files are mapped into memory again."""
BROKEN = (pa.ArrowException, OSError, ValueError)
"""Exceptions for a damaged file; ValueError for column names that are not UTF-8."""
BATCH = 1000
"""Rows per decoded batch."""


class ParquetRows:
    """Rows of one Parquet file; picklable.

    Attributes:
        columns: names of the columns.
        label_names: class names of columns of class indices, as `datasets` writes them.

    Raises:
        UserError: the file cannot be read as Parquet.
    """

    def __init__(self, file: Path, on_error: str):
        self.file, self.on_error = file, on_error
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._number, self._last, self._columns = 0, (), list[str]()
        try:
            self._parquet = pa.parquet.ParquetFile(file, memory_map=False)
            metadata = self._parquet.metadata
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self.schema: pa.Schema = self._parquet.schema_arrow
            self.columns = list(self.schema.names)
        except BROKEN as error:
            raise UserError(f"{file}: cannot be read as Parquet ({_one_line(error)})") from None
        self._firsts = list(accumulate(sizes[:-1], initial=0))  # first row of each group
        self.label_names = class_names(self.schema)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "on_error": self.on_error}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __len__(self) -> int:
        return int(self._parquet.metadata.num_rows)

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows `start` to `stop`. Raises UserError if the file cannot be read."""
        if start >= stop:
            return
        for number, batch in self.batches(start, list(columns)):
            part = batch.slice(max(0, start - number), min(stop, number + len(batch)) - max(start, number))
            yield from rows_of(part, max(start, number), self.on_error, str(self.file))
            if number + len(batch) >= stop:
                return

    def batches(self, start: int, columns: list[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield batches with the number of their first row, from the batch with row `start` on; the last one is kept."""
        end = self._number + len(self._last)
        is_near = start < end or self._group_of(start) == self._group_of(end)
        if self._batches is None or self._columns != columns or start < self._number or not is_near:
            group = self._group_of(start)
            groups = list(range(group, len(self._firsts)))
            self._number, self._last, self._columns = self._firsts[group], (), columns
            self._batches = self._parquet.iter_batches(BATCH, row_groups=groups, columns=columns, use_threads=False)
        while True:
            while self._number + len(self._last) <= start:
                self._number, self._last = self._number + len(self._last), self._next_batch()
            yield self._number, self._last
            start = self._number + len(self._last)

    def _group_of(self, row: int) -> int:
        return bisect.bisect_right(self._firsts, row) - 1

    def _next_batch(self) -> pa.RecordBatch:
        assert self._batches is not None
        try:
            return next(self._batches)
        except (*BROKEN, StopIteration) as error:
            raise UserError(f"{self.file}, row {self._number + 1}: cannot be read as Parquet ({_one_line(error)})") from None


class DatasetRows:
    """Rows of a `datasets.Dataset`, as `ParquetRows`."""

    def __init__(self, dataset: Any, name: str, on_error: str):
        self.dataset, self.name, self.on_error = dataset.with_format("arrow"), name, on_error
        self._num_read = 0
        self.schema: pa.Schema = dataset.features.arrow_schema
        self.columns = list(dataset.column_names)
        self.label_names = class_names(self.schema)

    def __len__(self) -> int:
        return len(self.dataset)

    def rows(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Row | BadRow]:
        """Yield rows `start` to `stop`."""
        self._map_again(stop - start)
        table: pa.Table = self.dataset[start:stop].select(list(columns))
        number = start
        for batch in table.to_batches(BATCH):
            yield from rows_of(batch, number, self.on_error, self.name)
            number += len(batch)

    def _map_again(self, num_rows: int) -> None:
        """Map the files into memory again after `MAPPED_ROWS` rows, so pages read before do not count as resident memory."""
        self._num_read += num_rows
        if self._num_read > MAPPED_ROWS and self.dataset.cache_files:
            pickled, self.dataset = pickle.dumps(self.dataset), None  # unmap before mapping again
            self.dataset, self._num_read = pickle.loads(pickled), 0


def rows_of(batch: pa.RecordBatch, number: int, on_error: str, name: str) -> Iterator[Row | BadRow]:
    """Yield the rows of a batch; the first is row `number` of `name`, from 0."""
    columns = [_values(column, number, on_error, name) for column in batch.columns]
    for i, values in enumerate(zip(*columns, strict=True)):
        if any(value is UNREADABLE for value in values):
            yield BadRow(f"row {number + i + 1} is not UTF-8")
        else:
            yield dict(zip(batch.schema.names, values, strict=True))


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return class names by column of class indices, from the metadata that `datasets` writes in a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        types = {
            column: feature.get("feature", feature) for column, feature in features.items() if isinstance(feature, dict)
        }
        return {column: list(type_["names"]) for column, type_ in types.items() if type_.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _values(column: pa.Array, number: int, on_error: str, name: str) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        cells = column.cast(pa.large_binary()).to_pylist()
        return [None if cell is None else _decode(cell, number + i, on_error, name) for i, cell in enumerate(cells)]


def _decode(cell: bytes, number: int, on_error: str, name: str) -> str:
    try:
        return cell.decode()
    except UnicodeDecodeError:
        if on_error == "strict":
            raise UserError(
                f"{name}, row {number + 1}: the text is not UTF-8: fix it, or set data.on_error to replace or skip"
            ) from None
        return UNREADABLE if on_error == "skip" else cell.decode(errors="replace")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
