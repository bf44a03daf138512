"""Source of texts given in Python: a pandas `DataFrame`, or a Hugging Face `Dataset` or `DatasetDict`.

The texts are written as Parquet files to a cache folder named by a content hash, and read as any other source: by ranks,
worker processes, a resumed run and `evaluate`. The same texts give the same folder and the same token store. Trade-off: a
copy of the used columns on disk.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import xxhash

from ulmfit_dist.config.schema import SPLITS, Config, DataConfig
from ulmfit_dist.data.sources.cells import BadCell, label_name, text_of_cell
from ulmfit_dist.data.sources.split_names import find_splits, listed
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import make_folder
from ulmfit_dist.utils.imports import on_one_line

ROWS_AT_ONCE = 10_000
"""Rows per batch of a Parquet file."""


class InMemorySource:
    """Texts given in Python, by split, with the columns that the config uses.

    Raises:
        UserError: the texts are of another type, or a column or split is missing.
    """

    def __init__(self, texts: Any, config: DataConfig):
        self.config = config
        self.splits, self.notices = _splits(texts, config)
        for split, table in self.splits.items():
            self._check_columns(split, table)

    def digest(self) -> str:
        """Return a hash of the texts and of the used columns, 16 hexadecimal digits."""
        state = xxhash.xxh3_128()
        for split in self.splits:
            state.update(json.dumps([split, self._columns(split)]).encode())
            for batch in self._batches(split):
                state.update(json.dumps(batch.to_pydict(), default=str).encode())
        return state.hexdigest()[:16]

    def write(self, folder: Path) -> None:
        """Write a folder with one Parquet file per split, atomically. Raises UserError."""
        make_folder(folder.parent, "data.cache_dir")
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for split in self.splits:
                batches = self._batches(split)
                first = next(batches, None)
                if first is None:
                    raise UserError(f"texts: the {split} split has no documents")
                with pa.parquet.ParquetWriter(temporary / f"{split}.parquet", first.schema) as writer:
                    writer.write_table(first)
                    for batch in batches:
                        writer.write_table(batch)
            temporary.chmod(0o755)
            temporary.replace(folder)
        except OSError as error:
            if not folder.is_dir():  # if it exists, another run has written it
                raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _columns(self, split: str) -> list[str]:
        """Return the columns to write: all of them if user-defined functions take rows."""
        uses_all = self.config.get_y is not None or self.config.splitter is not None
        return _column_names(self.splits[split]) if uses_all else self._used(split)

    def _used(self, split: str) -> list[str]:
        has_labels = self.config.label_col is not None and self.config.get_y is None and split != "unlabelled"
        labels = [self.config.label_col] if has_labels else []
        flags = [self.config.valid_col] if self.config.valid_col is not None and split == "train" else []
        return [str(column) for column in dict.fromkeys([*self.config.text_col, *labels, *flags])]

    def _check_columns(self, split: str, table: Any) -> None:
        present = _column_names(table)
        for column in self._used(split):
            if column not in present:
                raise UserError(f"texts: no column {column!r} in the {split} split; its columns are: {', '.join(present)}")

    def _batches(self, split: str) -> Iterator[pa.Table]:
        """Yield batches of rows, all cells as strings."""
        table, columns = self.splits[split], self._columns(split)
        names = getattr(table.features.get(self.config.label_col), "names", None) if _is_data_set(table) else None
        for start in range(0, len(table), ROWS_AT_ONCE):
            rows = _rows(table, columns, start, start + ROWS_AT_ONCE)
            yield pa.table({column: self._array(column, values, names, start) for column, values in rows.items()})

    def _array(self, column: str, values: list[Any], names: list[str] | None, start: int) -> pa.Array:
        cells = [self._cell(column, value, names, number) for number, value in enumerate(values, start)]
        try:
            return pa.array(cells, pa.large_string())
        except (pa.ArrowException, ValueError) as error:
            rows = f"column {column!r}, rows {start} to {start + len(values) - 1}"
            raise UserError(f"texts: {rows}: {on_one_line(error)}") from None

    def _cell(self, column: str, value: Any, names: list[str] | None, number: int) -> str | None:
        if _is_missing(value):
            return None
        try:
            if column == self.config.label_col:
                return label_name(value, self.config.label_delim, self.config.missing_label, names, column)
            return text_of_cell(value, column, self.config.on_error) if column in self.config.text_col else str(value)
        except BadCell as error:
            if self.config.on_error == "skip":
                return None
            raise UserError(
                f"texts: row {number}{error}: fix it, or set data.on_error=skip to leave such rows out"
            ) from None


def with_cached_texts(config: Config, name: str) -> Config:
    """Return the config with the cache folder of this name as its source."""
    path = Path(config.data.cache_dir) / "frames" / name
    return replace(config, data=replace(config.data, source="frame", path=str(path), splits={}, subset=None))


def _splits(texts: Any, config: DataConfig) -> tuple[dict[str, Any], list[str]]:
    """Return a table for each split, and a message about unused ones."""
    if not isinstance(texts, dict):
        if not _is_data_set(texts) and not (hasattr(texts, "iloc") and hasattr(texts, "columns")):
            raise UserError(
                f"texts: expected a pandas DataFrame, or a Hugging Face Dataset or DatasetDict, not a {type(texts).__name__}"
            )
        return {"train": texts}, []
    if missing := [name for name in config.splits.values() if name not in texts]:
        raise UserError(f"texts: no split {missing[0]!r}, named by data.splits; it has {listed(map(str, texts))}")
    name_of = dict(config.splits) or {split: names[0] for split, names in find_splits(map(str, texts))[0].items()}
    if name_of.get("train") is None:
        raise UserError(f"texts: no split is named train; it has {', '.join(map(str, texts))}: set data.splits")
    unused = [f"{name} ({len(texts[name]):,} rows)" for name in texts if name not in name_of.values()]
    notices = [f"texts: not used: {', '.join(unused)}"] if unused else []
    return {split: texts[name_of[split]] for split in SPLITS if split in name_of}, notices


def _is_data_set(table: Any) -> bool:
    return hasattr(table, "select_columns") and hasattr(table, "__len__")


def _column_names(table: Any) -> list[str]:
    return list(map(str, table.column_names if _is_data_set(table) else table.columns))


def _rows(table: Any, columns: list[str], start: int, stop: int) -> dict[str, list[Any]]:
    """Return the values of rows by column, from a DataFrame or a Dataset of any format."""
    if _is_data_set(table):
        rows: dict[str, list[Any]] = table.with_format(None).select_columns(columns)[start:stop]
        return rows
    present = _column_names(table)
    return {column: table.iloc[start:stop, present.index(column)].tolist() for column in columns}


def _is_missing(value: Any) -> bool:
    """Return whether a value is missing in pandas: None, NaN, NA or NaT."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)
