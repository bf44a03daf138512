"""The source at a path, its encoding, and its first rows.

The rows are read by the readers of `data/sources`, so what is seen here is what `prepare` reads.
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
TABLES = ("csv", "json", "parquet")
ROWS = 20_000
"""Rows that columns are looked at in, at most."""
CHARACTERS = 50_000_000
"""Characters of those rows, at most."""
HEAD = 4_000_000
"""Bytes of a file that its encoding is recognized from."""
TEXTS_OF_A_FOLDER = 50
"""Files of a folder that its encoding is recognized from."""
ENCODINGS = (
    "cp1252 cp1250 cp1251 cp1253 cp1254 cp1255 cp1256 cp1257 cp874 cp932 euc_jp gb18030 big5 euc_kr koi8_r iso8859_2"
).split()
"""Encodings that files without a byte-order mark may have, beside UTF-8."""
SEPARATORS = "|:~"
"""Separators that the reader of CSV files does not know."""


@dataclass
class Input:
    """A source that was recognized.

    Attributes:
        data: source, path, and how it is read; its columns are not chosen yet.
        reasons: by key of `data`, why it has its value.
        notices: what was seen besides.
        columns: names of the columns; empty for a folder of texts.
        types: type of each column.
        rows: the first rows, as mappings.
    """

    data: DataConfig
    reasons: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    types: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def find_input(path: str, data: DataConfig, given: Sequence[str] = ()) -> Input:
    """Recognize what lies at a path.

    Args:
        path: a file, a folder, or `hub:NAME`.
        data: the section, with the keys that the user has set.
        given: names of these keys, such as `source`.

    Raises:
        UserError: nothing there, or nothing that is known; a table without names of columns.
    """
    if path.startswith(HUB):
        found = Input(replace(data, source="hub", path=path.removeprefix(HUB)))
        _look_at_hub(found)
        return found
    place = Path(path).expanduser()
    if not place.exists():
        raise UserError(f"{path}: no such file or folder (a data set of the Hugging Face hub is hub:NAME)")
    place, notice = _whole_folder(place, given)
    source = data.source if "source" in given else _source_of(place)
    found = Input(replace(data, source=source, path=str(place)), notices=[notice] if notice else [])
    files = _first_files(place, found.data)
    if "encoding" not in given and source != "parquet" and (encoding := _encoding(files)):
        found.data = replace(found.data, encoding=encoding)
        found.reasons["encoding"] = "the files are not UTF-8; recognized from their bytes"
    if source == "folder":
        return found
    if source == "parquet":
        _look_at_rows(found, ParquetRows(files[0], "replace"))
    else:
        _look_at_lines(found, files[0])
    return found


def file_columns(found: Input) -> list[str]:
    """Return the columns whose values are names of files that are there, from where the table lies."""
    if found.data.source not in TABLES:
        return []
    place = Path(found.data.path or "")
    folder = place.parent if place.is_file() else place

    def is_file(value: Any) -> bool:
        return isinstance(value, str) and 0 < len(value) < 500 and "\0" not in value and os.path.isfile(folder / value)

    rows = found.rows[:20]
    return [column for column in found.columns if rows and all(is_file(row.get(column)) for row in rows)]


def _whole_folder(place: Path, given: Sequence[str]) -> tuple[Path, str]:
    """Return the folder of a file named as the training split where other splits lie beside it, and a line about it."""
    if not place.is_file() or "splits" in given:
        return place, ""
    source = next((source for source in TABLES if is_table(place, DataConfig(source=source))), None)
    known = split_of_name(table_stem(place.name, DataConfig(source=source)) or "") if source else None
    if source is None or known is None or known[0] != "train":
        return place, ""
    beside = []
    for entry in place.parent.iterdir():
        other = split_of_name(table_stem(entry.name, DataConfig(source=source)) or "") if entry.is_file() else None
        if other is not None and other[0] != "train":
            beside.append(entry.name)
    if not beside:
        return place, ""
    return place.parent, f"{place}: taken with {listed(sorted(beside))} beside it, as splits of {place.parent}"


def _source_of(place: Path) -> str:
    """Return the source that a file's ending, or the endings in a folder, speak for."""
    if place.is_file():
        for source in TABLES:
            if is_table(place, DataConfig(source=source)):
                return source
        raise UserError(
            f"{place}: expected a folder of .txt files, or a .csv, .tsv, .jsonl, .json or .parquet file: name it so, or "
            f"give data.source=csv"
        )
    inside = walk(place)
    kinds = Counter(source for file in inside.others for source in TABLES if is_table(file, DataConfig(source=source)))
    if inside.texts and (not kinds or len(inside.texts) > 10 * sum(kinds.values())):
        table = next((file for file in inside.others if file.parent == place and _tables(file)), None)
        has_classes = any(file.parent.parent != place and file.parent != place for file in inside.texts)
        is_labels = table is not None and not has_classes and len({file.parent for file in inside.texts}) == 1
        if is_labels:
            raise UserError(
                f"{place}: texts, and the table {table.name}: if the table names the texts, give it as PATH; else give "  # type: ignore[union-attr]
                f"data.source=folder"
            )
        return "folder"
    if len(kinds) == 1:
        return next(iter(kinds))
    if not kinds:
        raise UserError(f"{place}: no .txt, .csv, .tsv, .jsonl, .json or .parquet file in it or its sub-folders")
    raise UserError(f"{place}: files of several kinds ({', '.join(kinds)}): give one of them by data.source, such as csv")


def _tables(file: Path) -> list[str]:
    return [source for source in TABLES if is_table(file, DataConfig(source=source))]


def _first_files(place: Path, data: DataConfig) -> list[Path]:
    if data.source == "folder":
        return walk(place).texts[:TEXTS_OF_A_FOLDER] if place.is_dir() else []
    files, _ = find_table_files(place, data)
    return files["train"]


def _encoding(files: Sequence[Path]) -> str | None:
    """Return the encoding of files that are not UTF-8; None where they are, or have a byte-order mark."""
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
        if error.start > len(head) - 4:  # cut within a character
            return None
        if error.end < len(head) and head.count(b"\xef\xbf\xbd") > 0:
            return None
    from charset_normalizer import from_bytes

    best = from_bytes(head[:200_000] if head[:200_000].isascii() is False else head, cp_isolation=list(ENCODINGS)).best()
    return None if best is None else str(best.encoding)


def _look_at_hub(found: Input) -> None:
    datasets, _ = open_datasets(found.data)
    name, dataset = next(iter(datasets["train"].items()))
    _look_at_rows(found, DatasetRows(dataset, f"{found.data.path}, {name}", "replace"))


def _look_at_rows(found: Input, rows: ParquetRows | DatasetRows) -> None:
    found.columns = list(rows.columns)
    found.types = {column: _type_name(rows, column) for column in found.columns}
    found.rows = list(_within(_spread(rows)))


def _type_name(rows: ParquetRows | DatasetRows, column: str) -> str:
    if column in rows.label_names:
        return f"class of {len(rows.label_names[column])}"
    return str(rows.schema.field(column).type).replace("<values=", " of ").partition(", indices")[0]


def _spread(rows: ParquetRows | DatasetRows) -> Iterator[Row | BadRow]:
    """Return rows from several places, since files are often sorted by class; with the names of classes."""
    length, part = len(rows), 2000
    starts = [0] if length <= ROWS else [i * (length - part) // 9 for i in range(10)]
    for start in starts:
        for row in rows.rows(start, min(length, start + (ROWS if length <= ROWS else part)), rows.columns):
            for column, names in rows.label_names.items():
                if isinstance(row, dict) and isinstance(value := row.get(column), int) and 0 <= value < len(names):
                    row[column] = names[value]
            yield row


def _look_at_lines(found: Input, file: Path) -> None:
    data = found.data
    options = ReadOptions(data.source, "replace", data.encoding, data.quoting)
    if data.source == "csv":
        form = read_form(file, data)
        found.columns = form.columns
        if len(form.columns) == 1 and (sign := next((s for s in SEPARATORS if s in form.columns[0]), None)):
            raise UserError(
                f"{file}: a single column, {form.columns[0]!r}: if {sign!r} separates the columns, replace it: comma, "
                f"semicolon and tab are read"
            )
    found.rows = list(_within(first_rows(file, options, ROWS)))
    if data.source == "csv":
        _refuse_headless(file, found.columns, found.rows)
    else:
        found.columns = list(dict.fromkeys(column for row in found.rows[:1000] for column in row))
    found.types = dict.fromkeys(found.columns, "string") if data.source == "csv" else {}


def read_form(file: Path, data: DataConfig) -> CsvFormat:
    """Return the form of a CSV file: delimiter, quoting and columns."""
    stream = LineStream(file, data.encoding, "replace")
    try:
        return read_csv_format(stream, data.quoting, ())[0]
    finally:
        stream.close()


def _refuse_headless(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> None:
    if reason := looks_headless(columns, rows):
        names = ",".join(["text", "label", *(f"column{i}" for i in range(3, len(columns) + 1))][: len(columns)])
        raise UserError(
            f"{file}: its first line looks like a row, not like names of columns ({reason}): write a line of "
            f"{len(columns)} names above it, such as {names}"
        )


def _within(rows: Iterator[Row | BadRow]) -> Iterator[Row]:
    """Return the rows that can be read, up to the limits."""
    left = CHARACTERS
    for row in islice(rows, ROWS):
        if isinstance(row, BadRow):
            continue
        left -= sum(len(value) for value in row.values() if isinstance(value, str))
        yield row
        if left < 0:
            return
