"""Types that all sources of texts share: a split's documents, a row of a file, a label."""

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
    """A row that cannot be read.

    Attributes:
        reason: place in its file and cause, as a phrase.
    """

    reason: str


@dataclass(frozen=True)
class ReadOptions:
    """How a file of rows is read.

    Attributes:
        kind: csv or json.
        on_error: `data.on_error`.
        encoding: `data.encoding`.
        quoting: `data.quoting`.
        text: columns of text.
        label: column of labels, which a JSON row may lack; None for no labels.
        others: columns that a CSV file must have, too.
    """

    kind: str
    on_error: str = "strict"
    encoding: str | None = None
    quoting: bool | None = None
    text: tuple[str, ...] = ()
    label: str | None = None
    others: tuple[str, ...] = ()

    @property
    def wanted(self) -> list[str]:
        """Columns that a CSV file must have."""
        return list(dict.fromkeys([*self.text, *([self.label] if self.label is not None else []), *self.others]))


@dataclass
class ParsedRow:
    """A row with its place.

    Attributes:
        row: values by column, or why there are none.
        line: number of its first line, or of its item.
        offset: offset of its first byte in the stream.
        cell_lines: lines of a CSV row that has several; else empty.
    """

    row: Row | BadRow
    line: int
    offset: int
    cell_lines: Sequence[str] = ()


class TextDataset(Protocol):
    """One split of a source."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        """Texts and labels of documents `start` to `stop`. A text of None: it cannot be read, and `data.on_error` says to
        skip it. A label of None: the document has none."""


class Items(TextDataset, Protocol):
    """One split of a source as it lies on disk: what functions of the user's may be asked about."""

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Any]]:
        """What messages call each document, and what the user's functions know it by: a path, or a row as a mapping.

        None stands for a document that cannot be read and is skipped.
        """

    def pick(self, numbers: np.ndarray, labelled: bool) -> Items:
        """The documents of these numbers, in this order, with their labels or without any."""


@dataclass
class Subset:
    """Some documents of another source, in their order."""

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
    """All splits of a source, and what tells this content from any other.

    Attributes:
        splits: documents by split, in the order of `SPLITS`; those that are there.
        identity: JSON-able facts that change when the content, or how it is read, does; names and times of files are none.
        notices: lines about what is not used, and what is odd.
    """

    splits: dict[str, TextDataset]
    identity: dict[str, Any]
    notices: list[str] = field(default_factory=list)


def as_flag(value: Any) -> bool | None:
    """What a cell of a column of flags says: true and false, 1 and 0, however they are written; None for anything else."""
    return {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(str(value).strip().lower())


def existing_path(config: DataConfig) -> Path:
    """`data.path`. Raises UserError where there is nothing."""
    if config.source == "frame" and config.path is None:
        raise UserError("data.source=frame: its texts come from Python: prepare(config, texts=...)")
    path = Path(config.path or "").expanduser()
    if not path.exists():
        if config.source == "frame":
            raise UserError(
                f"data.path={config.path}: texts that were given in Python are not there: give them again, as texts="
            )
        raise UserError(f"data.path={config.path}: no such file or folder")
    return path


def digest(listing: Any) -> str:
    """Return a short string that changes when a listing of any length does."""
    return xxhash.xxh3_128_hexdigest(json.dumps(listing).encode())
