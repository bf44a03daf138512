"""Recognition of the source at a path: its type, encoding and first rows.

Rows are read by the readers of `data/sources`, not by a sniffer, so `init` sees exactly what `prepare` reads.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.profile.columns import looks_headless
from ulmfit_dist.data.sources.base import BadRow, ReadOptions, Row
from ulmfit_dist.data.sources.csv_format import CsvFormat, read_csv_format
from ulmfit_dist.data.sources.folder_walk import walk
from ulmfit_dist.data.sources.hub import open_datasets
from ulmfit_dist.data.sources.line_stream import LineStream
from ulmfit_dist.data.sources.parquet import DatasetRows, ParquetRows
from ulmfit_dist.data.sources.row_reader import first_rows
from ulmfit_dist.data.sources.split_names import listed, split_of_name
from ulmfit_dist.data.sources.table_files import find_table_files, is_table, table_stem
from ulmfit_dist.errors import UserError

HUB = "hub:"
"""Prefix of a hub data set's name."""
TABLES = ("csv", "json", "parquet")
"""Values of `data.source` for tables."""
ROWS = 20_000
"""Maximum number of rows for the statistics of columns."""
CHARACTERS = 50_000_000
"""Maximum number of characters of those rows."""
HEAD = 4_000_000
"""Number of bytes from which an encoding is recognized."""
TEXTS_OF_A_FOLDER = 50
"""Number of files from which the encoding of a folder is recognized."""
ENCODINGS = (
    "cp1252 cp1250 cp1251 cp1253 cp1254 cp1255 cp1256 cp1257 cp874 cp932 euc_jp gb18030 big5 euc_kr koi8_r iso8859_2"
).split()
"""Candidate encodings of files without a byte-order mark, besides UTF-8."""
SEPARATORS = "|:~"
"""Common separators that the CSV reader does not support."""


@dataclass
class Input:
    """Recognized source.

    Attributes:
        data: `data` section with source, path and encoding; columns are chosen later.
        reasons: reasons for values, by key of `data`.
        notices: further messages.
        columns: names of the columns; empty for a folder of texts.
        types: type of each column.
        rows: first rows, as mappings.
    """

    data: DataConfig
    reasons: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def find_input(path: str, data: DataConfig, given: Sequence[str] = ()) -> Input:
    """Recognize the source at a path, and read its first rows.

    Args:
        path: a file, a folder, or `hub:NAME`.
        data: `data` section with the keys that the user has set.
        given: names of these keys, such as `source`.

    Raises:
        UserError: no such path, an unknown type of source, or a table without column names.
    """
    if path.startswith(HUB):
        source_input = Input(replace(data, source="hub", path=path.removeprefix(HUB)))
        _read_hub(source_input)
        return source_input
    location = Path(path).expanduser()
    if not location.exists():
        raise UserError(f"{path}: no such file or folder (for a Hugging Face data set, give hub:NAME)")
    location, notice = _whole_folder(location, given)
    source = data.source if "source" in given else _source_of(location)
    source_input = Input(replace(data, source=source, path=str(location)), notices=[notice] if notice else [])
    files = _first_files(location, source_input.data)
    if "encoding" not in given and source != "parquet" and (encoding := _encoding(files)):
        source_input.data = replace(source_input.data, encoding=encoding)
        source_input.reasons["encoding"] = "the files are not UTF-8; recognized from their bytes"
    if source == "folder":
        return source_input
    if source == "parquet":
        _read_columns(source_input, ParquetRows(files[0], "replace"))
    else:
        _read_lines(source_input, files[0])
    return source_input


def file_columns(source_input: Input) -> list[str]:
    """Return the columns whose values are names of existing files, relative to the table's folder."""
    if source_input.data.source not in TABLES:
        return []
    path = Path(source_input.data.path or "")
    folder = path.parent if path.is_file() else path

    def is_file(value: Any) -> bool:
        return isinstance(value, str) and 0 < len(value) < 500 and "\0" not in value and os.path.isfile(folder / value)

    rows = source_input.rows[:20]
    return [column for column in source_input.columns if rows and all(is_file(row.get(column)) for row in rows)]


def _whole_folder(path: Path, given: Sequence[str]) -> tuple[Path, str]:
    """Return the folder of a file named as the training split, with a message, if it has other splits; else the path."""
    if not path.is_file() or "splits" in given:
        return path, ""
    source = next((source for source in TABLES if is_table(path, DataConfig(source=source))), None)
    known = split_of_name(table_stem(path.name, DataConfig(source=source)) or "") if source else None
    if source is None or known is None or known[0] != "train":
        return path, ""
    beside = []
    for entry in path.parent.iterdir():
        other = split_of_name(table_stem(entry.name, DataConfig(source=source)) or "") if entry.is_file() else None
        if other is not None and other[0] != "train":
            beside.append(entry.name)
    if not beside:
        return path, ""
    return path.parent, f"{path}: read together with {listed(sorted(beside))}, as splits of {path.parent}"


def _source_of(path: Path) -> str:
    """Return the `data.source` for the ending of a file, or for the endings in a folder."""
    if path.is_file():
        for source in TABLES:
            if is_table(path, DataConfig(source=source)):
                return source
        raise UserError(
            f"{path}: expected a folder of .txt files, or a .csv, .tsv, .jsonl, .json or .parquet file: rename it, or set "
            f"data.source=csv"
        )
    inside = walk(path)
    sources = Counter(source for file in inside.others for source in _table_sources(file))
    if inside.texts and (not sources or len(inside.texts) > 10 * sum(sources.values())):
        table = next((file for file in inside.others if file.parent == path and _table_sources(file)), None)
        has_classes = any(file.parent.parent != path and file.parent != path for file in inside.texts)
        is_labels = table is not None and not has_classes and len({file.parent for file in inside.texts}) == 1
        if is_labels:
            raise UserError(
                f"{path}: texts and the table {table.name}: if the table names the texts, give it as PATH; else set "  # type: ignore[union-attr]
                f"data.source=folder"
            )
        return "folder"
    if len(sources) == 1:
        return next(iter(sources))
    if not sources:
        raise UserError(f"{path}: no .txt, .csv, .tsv, .jsonl, .json or .parquet file in it or its sub-folders")
    raise UserError(f"{path}: files of several types ({', '.join(sources)}): choose one by data.source, such as csv")


def _table_sources(file: Path) -> list[str]:
    return [source for source in TABLES if is_table(file, DataConfig(source=source))]


def _first_files(path: Path, data: DataConfig) -> list[Path]:
    if data.source == "folder":
        return walk(path).texts[:TEXTS_OF_A_FOLDER] if path.is_dir() else []
    files, _ = find_table_files(path, data)
    return files["train"]


def _encoding(files: Sequence[Path]) -> str | None:
    """Return the encoding of files that are not UTF-8; None if they are, or have a byte-order mark."""
    head = b""
    for file in files:
        stream = LineStream(file, None, "replace")
        try:
            head += stream.read(max(HEAD - len(head), 0))
        finally:
            stream.close()
    try:
        head.decode("utf-8")
        return None
    except UnicodeDecodeError as error:
        if error.start > len(head) - 4:  # the head ends within a character
            return None
        if error.end < len(head) and head.count(b"\xef\xbf\xbd") > 0:
            return None
    from charset_normalizer import from_bytes

    best = from_bytes(head[:200_000] if head[:200_000].isascii() is False else head, cp_isolation=list(ENCODINGS)).best()
    return None if best is None else str(best.encoding)


def _read_hub(source_input: Input) -> None:
    datasets, _ = open_datasets(source_input.data)
    name, dataset = next(iter(datasets["train"].items()))
    _read_columns(source_input, DatasetRows(dataset, f"{source_input.data.path}, {name}", "replace"))


def _read_columns(source_input: Input, rows: ParquetRows | DatasetRows) -> None:
    source_input.columns = list(rows.columns)
    source_input.types = {column: _type_name(rows, column) for column in source_input.columns}
    source_input.rows = list(_within_limits(_spread(rows)))


def _type_name(rows: ParquetRows | DatasetRows, column: str) -> str:
    if column in rows.label_names:
        return f"class of {len(rows.label_names[column])}"
    return str(rows.schema.field(column).type).replace("<values=", " of ").partition(", indices")[0]


def _spread(rows: ParquetRows | DatasetRows) -> Iterator[Row | BadRow]:
    """Yield rows from ten parts of a file, because files are often sorted by class; with class names."""
    length, part = len(rows), 2000
    starts = [0] if length <= ROWS else [i * (length - part) // 9 for i in range(10)]
    for start in starts:
        for row in rows.rows(start, min(length, start + (ROWS if length <= ROWS else part)), rows.columns):
            for column, names in rows.label_names.items():
                if isinstance(row, dict) and isinstance(value := row.get(column), int) and 0 <= value < len(names):
                    row[column] = names[value]
            yield row


def _read_lines(source_input: Input, file: Path) -> None:
    data = source_input.data
    options = ReadOptions(data.source, "replace", data.encoding, data.quoting)
    if data.source == "csv":
        form = read_form(file, data)
        source_input.columns = form.columns
        if len(form.columns) == 1 and (separator := next((s for s in SEPARATORS if s in form.columns[0]), None)):
            raise UserError(
                f"{file}: a single column, {form.columns[0]!r}: if {separator!r} separates the columns, replace it by a "
                f"comma, semicolon or tab"
            )
    source_input.rows = list(_within_limits(first_rows(file, options, ROWS)))
    if data.source == "csv":
        _check_header(file, source_input.columns, source_input.rows)
    else:
        source_input.columns = list(dict.fromkeys(column for row in source_input.rows[:1000] for column in row))
    source_input.types = dict.fromkeys(source_input.columns, "string") if data.source == "csv" else {}


def read_form(file: Path, data: DataConfig) -> CsvFormat:
    """Return the format of a CSV file: delimiter, quoting and columns."""
    stream = LineStream(file, data.encoding, "replace")
    try:
        return read_csv_format(stream, data.quoting, ())[0]
    finally:
        stream.close()


def _check_header(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    if reason := looks_headless(columns, rows):
        names = ",".join(["text", "label", *(f"column{i}" for i in range(3, len(columns) + 1))][: len(columns)])
        raise UserError(
            f"{file}: the first line looks like a row, not like column names ({reason}): add a line of {len(columns)} "
            f"names before it, such as {names}"
        )


def _within_limits(rows: Iterator[Row | BadRow]) -> Iterator[Row]:
    """Yield the readable rows, up to `ROWS` and `CHARACTERS`."""
    left = CHARACTERS
    for row in islice(rows, ROWS):
        if isinstance(row, BadRow):
            continue
        left -= sum(len(value) for value in row.values() if isinstance(value, str))
        yield row
        if left < 0:
            return
