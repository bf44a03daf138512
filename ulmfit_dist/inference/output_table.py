"""Output tables: blocks of rows with their new columns, written as parts and merged to one file.

A part is a file of its own, written atomically, so a killed process loses only the block that it computes. Rows that were
read as dictionaries are kept as JSON lines, rows of Parquet as Parquet, so values keep their types. The merged file is
written beside the output and renamed. Trade-off: the disk holds parts and output together for the time of the merge.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet

from ulmfit_dist.data.input_table import Rows
from ulmfit_dist.data.sources.base import Row
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import write_bytes

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
"""Endings of an output, which choose its format."""
COPY_BYTES = 1 << 20
"""Bytes that are copied at once."""
Columns = Mapping[str, list[Any]]
"""New columns of a block: values by name."""


def check_suffix(output: Path) -> None:
    """Raise UserError if the ending of an output names no format, or its folder does not exist."""
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(f"--output {output}: unknown ending {output.suffix!r}: give one of {', '.join(SUFFIXES)}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: no folder {output.parent}")


def part_suffix(rows_are_parquet: bool) -> str:
    """Return the ending of the parts."""
    return ".parquet" if rows_are_parquet else ".jsonl"


def write_part(path: Path, rows: Rows, new: Columns, types: Mapping[str, pa.DataType]) -> None:
    """Write the rows of a block with their new columns, of these types, atomically.

    Raises:
        UserError: the part cannot be written, or a JSON row has one of the new columns already.
    """
    if isinstance(rows, pa.Table):
        for name, values in new.items():
            rows = rows.append_column(name, pa.array(values, types[name]))
        buffer = pa.BufferOutputStream()
        pa.parquet.write_table(rows, buffer)
        write_bytes(path, buffer.getvalue().to_pybytes())
        return
    names = list(new)
    doubled = next((name for row in rows for name in names if name in row), None)
    if doubled is not None:  # a column of some JSON rows only, which is not in the header of the table
        raise UserError(f"a row has a column {doubled!r} already: rename it, or name the new columns with --prefix")
    lines = (
        json.dumps({**row, **dict(zip(names, values, strict=True))}, ensure_ascii=False)
        for row, values in zip(rows, zip(*new.values(), strict=True), strict=True)
    )
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))


def merge_parts(parts: Sequence[Path], output: Path, columns: Sequence[str], schema: pa.Schema | None) -> None:
    """Write the rows of all parts, in order, to the output, as its ending says.

    Args:
        columns: names of the columns of an output without rows, in order; of JSON rows, further ones may follow.
        schema: types of the columns, if the parts are Parquet.

    Raises:
        UserError: the output cannot be written, or Parquet cannot hold the values of a column.
    """
    suffix = output.suffix.lower()
    with _replaced(output) as file:
        if suffix == ".jsonl" and schema is None:
            _copy(parts, file)
        elif suffix == ".jsonl":
            for row in _rows(parts):
                file.write(f"{json.dumps(row, ensure_ascii=False, default=_as_text)}\n".encode("utf-8", "surrogatepass"))
        elif suffix == ".parquet":
            _merge_to_parquet(parts, file, columns, schema)
        else:
            _merge_to_csv(parts, file, columns if schema is not None else _all_columns(parts, columns), suffix)


def _copy(parts: Sequence[Path], file: IO[bytes]) -> None:
    for part in parts:
        with part.open("rb") as stream:
            while block := stream.read(COPY_BYTES):
                file.write(block)


def _merge_to_csv(parts: Sequence[Path], file: IO[bytes], columns: Sequence[str], suffix: str) -> None:
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogatepass", newline="", write_through=True)
    writer = csv.writer(text, delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n")
    writer.writerow(columns)
    for row in _rows(parts):
        writer.writerow([_cell(row.get(column)) for column in columns])
    text.detach()


def _merge_to_parquet(parts: Sequence[Path], file: IO[bytes], columns: Sequence[str], schema: pa.Schema | None) -> None:
    if schema is None:
        schema = _schema_of(parts, _all_columns(parts, columns))
    with pa.parquet.ParquetWriter(file, schema) as writer:
        for part in parts:
            if part.suffix == ".parquet":
                writer.write_table(pa.parquet.read_table(part).cast(schema))
            else:
                writer.write_table(pa.Table.from_pylist(list(_rows([part])), schema))


def _schema_of(parts: Sequence[Path], columns: Sequence[str]) -> pa.Schema:
    """Return the types that hold all values of JSON rows: a pass over all parts. Raises UserError."""
    schema = pa.schema([(column, pa.null()) for column in columns])
    for part in parts:
        rows = list(_rows([part]))
        for column in columns:
            try:
                own = pa.schema([(column, pa.array([row.get(column) for row in rows]).type)])
                merged = pa.unify_schemas([pa.schema([schema.field(column)]), own], promote_options="permissive")
            except (pa.ArrowException, OverflowError):
                raise UserError(
                    f"--output: the values of column {column!r} have several types, which Parquet cannot hold: "
                    f"give an output that ends in .jsonl"
                ) from None
            schema = schema.set(schema.get_field_index(column), merged.field(0))
    empty = [i for i, field in enumerate(schema) if pa.types.is_null(field.type)]
    for i in empty:
        schema = schema.set(i, pa.field(schema.field(i).name, pa.string()))
    return schema


def _all_columns(parts: Sequence[Path], columns: Sequence[str]) -> list[str]:
    """Return these columns, and those that only later JSON rows have."""
    names = dict.fromkeys(columns)
    for row in _rows(parts):
        names |= dict.fromkeys(row)
    return list(names)


def _rows(parts: Iterable[Path]) -> Iterator[Row]:
    """Yield the rows of parts, one part in memory at a time."""
    for part in parts:
        if part.suffix == ".parquet":
            for batch in pa.parquet.ParquetFile(part).iter_batches():
                yield from batch.to_pylist()
        else:
            with part.open(encoding="utf-8", errors="surrogatepass") as file:
                yield from map(json.loads, file)


def _cell(value: Any) -> str:
    """Return a value as the text of a CSV cell; lists and objects as JSON."""
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=_as_text)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, (str, int, float)) else str(_as_text(value))


def _as_text(value: Any) -> Any:
    """Return a value of Parquet that JSON lacks: dates in ISO format, bytes in base64."""
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (Decimal, timedelta)):
        return str(value)
    return str(value)


@contextmanager
def _replaced(output: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces the output at the end; a pipe or a device is written in place."""
    is_special = output.exists() and not output.is_file()
    temporary = output if is_special else output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        if not is_special:
            temporary.replace(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from None
    finally:
        if not is_special:
            temporary.unlink(missing_ok=True)
