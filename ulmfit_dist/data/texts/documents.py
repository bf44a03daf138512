"""What every source of texts is made of."""

from __future__ import annotations

import json
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


def existing_path(config: DataConfig) -> Path:
    """`data.path`. Raises UserError where there is nothing."""
    path = Path(config.path or "").expanduser()
    if not path.exists():
        raise UserError(f"data.path={config.path}: no such file or folder")
    return path


def digest(listing: list[Any]) -> str:
    """A listing of files as one short string: it may have millions of lines."""
    return xxhash.xxh3_128_hexdigest(json.dumps(listing).encode())


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of a file: they change when its content does."""
    status = file.stat()
    return status.st_size, status.st_mtime_ns
