"""Texts and labels written as each kind of source that is read from files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet

Rows = list[tuple[str, str | None]]


def rows(number: int, begin: int = 0) -> Rows:
    return [(f"text number {i}", "ab"[i % 2]) for i in range(begin, begin + number)]


def csv_text(content: Rows, delimiter: str = ",") -> str:
    lines = [f"{text}{delimiter}{label or ''}\n" for text, label in content]
    return f"text{delimiter}label\n{''.join(lines)}"


def write(path: str, content: str | bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def json_text(content: Rows) -> str:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in content)


def parquet(path: str, content: Rows) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    columns = {"text": [text for text, _ in content], "label": [label for _, label in content]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def folder(path: str, content: Rows) -> None:
    for i, (text, label) in enumerate(content):
        write(f"{path}/{label}/{i}.txt", text)


WRITERS: dict[str, tuple[str, Callable[[str, Rows], None]]] = {
    "csv": ("csv", lambda path, content: write(f"{path}.csv", csv_text(content))),
    "tsv": ("csv", lambda path, content: write(f"{path}.tsv", csv_text(content, "\t"))),
    "json": ("json", lambda path, content: write(f"{path}.jsonl", json_text(content))),
    "parquet": ("parquet", lambda path, content: parquet(f"{path}.parquet", content)),
    "folder": ("folder", folder),
}
