"""Opening of tables: files by split, their columns and rows, and the identity of their content.

All files of all splits are checked before any is tokenized; the trade-off is a pass over CSV and JSON files at first start.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ulmfit_dist.config.schema import SPLITS, DataConfig
from ulmfit_dist.data.sources.base import ReadOptions, Source, TextDataset, existing_path
from ulmfit_dist.data.sources.content_cache import ContentCache
from ulmfit_dist.data.sources.csv_format import read_csv_format
from ulmfit_dist.data.sources.line_stream import LineStream
from ulmfit_dist.data.sources.parquet import ParquetRows
from ulmfit_dist.data.sources.row_reader import FileRows
from ulmfit_dist.data.sources.table_files import find_table_files
from ulmfit_dist.data.sources.tables import (
    RowFile,
    Table,
    TableSource,
    check_columns,
    column_key,
    columns_identity,
    cut_by_column,
    label_column,
)
from ulmfit_dist.errors import UserError


def open_table(config: DataConfig, cache: ContentCache) -> Source:
    """Open the files of a table. Raises UserError."""
    path = existing_path(config)
    files, notices = find_table_files(path, config)
    splits: dict[str, TableSource] = {}
    contents: list[Any] = []
    for split in SPLITS:
        if split in files:
            opened = [_open_file(file, config, split, cache, notices) for file in files[split]]
            contents.append([split, [content for _, content in opened]])
            pairs = [(str(file), rows) for file, (rows, _) in zip(files[split], opened, strict=True)]
            splits[split] = make_split(pairs, config, split, notices)
    identity = {"files": contents, "on_error": config.on_error, **columns_identity(config)}
    return Source(cut_splits(splits, config), identity, notices)


def make_split(files: Sequence[tuple[str, RowFile]], config: DataConfig, split: str, notices: list[str]) -> TableSource:
    """Return a split with the rows of its files, after a check of their columns. Raises UserError."""
    label = label_column(config, split)
    for name, rows in files:
        has_label = label is None or label in rows.columns
        if split == "test" and not has_label:
            label = None
            notices.append(f"{name}: no column {config.label_col!r}: the test split has no labels and no metrics")
        required = column_key(config, split)
        check_columns(rows.columns, {c: key for c, key in required.items() if label is not None or key != "label_col"}, name)
        _check_types(name, rows, config, label)
    columns = list(dict.fromkeys(column for _, rows in files for column in rows.columns))
    names = next((rows.label_names for _, rows in files if rows.label_names), {})
    return TableSource(
        Table(files, names),
        config.text_col,
        label,
        config.on_error,
        config.label_delim,
        config.missing_label,
        columns,
        config.source in ("csv", "json"),
    )


def cut_splits(splits: dict[str, TableSource], config: DataConfig) -> dict[str, TextDataset]:
    """Return the splits in order, after cutting train by `data.valid_col`, if set. Raises UserError."""
    if config.valid_col is not None:
        splits = cut_by_column(splits, config.valid_col)
    return {split: splits[split] for split in SPLITS if split in splits}


def _open_file(
    file: Path, config: DataConfig, split: str, cache: ContentCache, notices: list[str]
) -> tuple[RowFile, list[Any]]:
    """Return the rows of a file, and the identity of its content."""
    if config.source == "frame":  # its folder is named by a hash that does not depend on the version of pyarrow
        return ParquetRows(file, config.on_error), [file.parent.name]
    if config.source == "parquet":
        return ParquetRows(file, config.on_error), [cache.hash_file(file)]
    label = label_column(config, split)
    others = (config.valid_col,) if config.valid_col is not None and split == "train" else ()
    options = ReadOptions(
        config.source, config.on_error, config.encoding, config.quoting, tuple(config.text_col), label, others
    )
    form: list[Any] = []
    if config.source == "csv":
        header = _csv_columns(file, config, options)
        form = [header.delimiter, header.quoting]
        if split == "test" and label is not None and label not in header.columns:
            options = ReadOptions(config.source, config.on_error, config.encoding, config.quoting, tuple(config.text_col))
        check_columns(
            header.columns, {c: k for c, k in column_key(config, split).items() if c in options.required}, str(file)
        )
    index = cache.index(file, options)
    notices += index.notices
    return FileRows(file, options, index), [index.digest, *form]


def _csv_columns(file: Path, config: DataConfig, options: ReadOptions):  # type: ignore[no-untyped-def]
    stream = LineStream(file, config.encoding, config.on_error)
    try:
        return read_csv_format(stream, options.quoting, options.required)[0]
    finally:
        stream.close()


def _check_types(name: str, rows: RowFile, config: DataConfig, label: str | None) -> None:
    """Check the types of text and label columns. Raises UserError."""
    schema: pa.Schema | None = getattr(rows, "schema", None)
    if schema is None:
        return
    for column in config.text_col:
        type_ = schema.field(column).type
        if pa.types.is_nested(type_) or pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
            raise UserError(f"{name}: column {column!r} of data.text_col is of type {type_}, which is not text")
    if label is not None:
        type_ = schema.field(label).type
        is_binary = pa.types.is_binary(type_) or pa.types.is_large_binary(type_)
        if pa.types.is_struct(type_) or pa.types.is_map(type_) or is_binary:
            raise UserError(f"{name}: column {label!r} of data.label_col is of type {type_}, which is not a label")
