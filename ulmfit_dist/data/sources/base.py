"""Common types of all sources: documents of a split, rows of a file, and options for reading them.

A source is a protocol (`TextDataset`), not a base class: each kind of file reads slices in its own way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.errors import UserError

Row = dict[str, Any]
"""Values by column."""


@dataclass(frozen=True)
class BadRow:
    """Row that cannot be read.

    Attributes:
        reason: line or row number and cause, as a phrase.
    """

    reason: str


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading a CSV or JSON file.

    Attributes:
        file_format: csv or json.
        on_error: `data.on_error`.
        encoding: `data.encoding`.
        quoting: `data.quoting`.
        text: text columns.
        label: label column, optional in a JSON row; None for no labels.
        others: further columns that a CSV file must have.
    """

    file_format: str
    on_error: str = "strict"
    encoding: str | None = None
    quoting: bool | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    others: tuple[str, ...] = ()

    @property
    def required(self) -> list[str]:
        """Columns that a CSV file must have."""
        return list(dict.fromkeys([*self.text, *([self.label] if self.label is not None else []), *self.others]))


@dataclass
class ParsedRow:
    """Row with its position in the file.

    Attributes:
        row: values by column, or the reason why the row cannot be read.
        line: number of its first line, or of its list item, from 1.
        offset: offset of its first byte in the stream.
        cell_lines: lines of a CSV row that spans several; else empty.
    """

    row: Row | BadRow
    line: int
    offset: int
    cell_lines: Sequence[str] = ()


class TextDataset(Protocol):
    """One split of a source."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        """Return texts and labels of documents `start` to `stop`.

        A text is None if it cannot be read and `data.on_error` is skip; a label is None if the document has none.
        """


class Items(TextDataset, Protocol):
    """One split of a source with the items that user-defined functions take."""

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Any]]:
        """Yield a name for messages and the item of each document: a path, or a row as a mapping.

        The item is None for a document that cannot be read and is skipped.
        """

    def pick(self, numbers: np.ndarray, labelled: bool) -> Items:
        """Return the documents with these indices, in this order, with or without their labels."""


@dataclass
class Subset:
    """Selection of documents of another dataset.

    Attributes:
        documents: the other dataset.
        indices: indices of the selected documents, int64, ascending.
    """

    documents: TextDataset
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        indices = self.indices[start:stop]
        runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1) if len(indices) else []
        parts = [self.documents.read(int(run[0]), int(run[-1]) + 1) for run in runs]
        return [text for texts, _ in parts for text in texts], [label for _, labels in parts for label in labels]


@dataclass
class Source:
    """All splits of a source, with the identity of its content.

    Attributes:
        splits: documents by split, in the order of `SPLITS`; missing splits have no entry.
        identity: JSON-able values that change with the content and the way it is read, but not with names and times of
            files.
        notices: messages about unused files and suspicious content.
    """

    splits: dict[str, TextDataset]
    identity: dict[str, Any]
    notices: list[str] = field(default_factory=list)


def as_flag(value: Any) -> bool | None:
    """Return a cell as bool: true or false, 1 or 0, in any case; None for anything else."""
    return {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(str(value).strip().lower())


def existing_path(config: DataConfig) -> Path:
    """Return `data.path`. Raises UserError if it does not exist."""
    if config.source == "frame" and config.path is None:
        raise UserError("data.source=frame: its texts come from Python: prepare(config, texts=...)")
    path = Path(config.path or "").expanduser()
    if not path.exists():
        if config.source == "frame":
            raise UserError(
                f"data.path={config.path}: no copy of the texts that were given in Python: give them again, as texts=..."
            )
        raise UserError(f"data.path={config.path}: no such file or folder")
    return path


def digest(listing: Any) -> str:
    """Return the xxh3 of a JSON-able value, hexadecimal."""
    return xxhash.xxh3_128_hexdigest(json.dumps(listing).encode())
