"""What every source of texts is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from ulmfit_dist.config import DataConfig
from ulmfit_dist.errors import UserError


class Documents(Protocol):
    """One split of a source."""

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        """Texts and labels of documents `start` to `stop`. A text of None: it cannot be read, and `data.on_error` says to
        skip it. A label of None: the document has none."""


class Items(Documents, Protocol):
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

    documents: Documents
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        parts = [self.documents.read(i, i + 1) for i in self.indices[start:stop].tolist()]
        return [texts[0] for texts, _ in parts], [labels[0] for _, labels in parts]


@dataclass
class Source:
    """All splits of a source, and what tells this content from any other.

    Attributes:
        splits: documents by split, in the order train, valid, unlabelled; those that are there.
        identity: JSON-able facts that change when the content does: names, sizes, times, columns.
    """

    splits: dict[str, Documents]
    identity: dict[str, Any]


def label_name(value: Any, delimiter: str, no_label: str | None, names: Sequence[str] | None = None) -> str | None:
    """A label as it is stored, without spaces around it; None for no label: empty, NaN or what means none.

    An empty list is a label: of no class.

    Args:
        delimiter: what joins a list of labels (`data.label_delim`).
        no_label: the label that means none (`data.no_label`).
        names: of the classes, where values are their numbers; then -1 means none.
    """
    if isinstance(value, (list, tuple)):
        return delimiter.join(str(part if names is None else names[part]) for part in value) or delimiter
    if value is None or value != value:  # NaN
        return None
    if names is not None:
        return None if value == -1 else str(names[value])
    name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    return None if name in ("", no_label) else name


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
    """A listing of files as one short string: it may have millions of lines."""
    return xxhash.xxh3_128_hexdigest(json.dumps(listing).encode())


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of a file: they change when its content does."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns
