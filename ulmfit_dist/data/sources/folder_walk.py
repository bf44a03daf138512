"""Texts and folders below a folder: hidden ones left out, links followed, each folder entered once."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ulmfit_dist.data.sources.line_stream import COMPRESSED_SUFFIXES
from ulmfit_dist.data.sources.split_names import natural_order

SKIPPED = ("__MACOSX",)
"""Folders beside data that hold none, besides hidden ones."""


@dataclass
class Walk:
    """What lies below a folder, in natural order.

    Attributes:
        texts: .txt files, compressed ones too, in any case of letters.
        others: all other files.
        folders: folders, of the first level alone where the depth is 1.
        dangling: links to what is not there.
    """

    texts: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    dangling: list[Path] = field(default_factory=list)


def walk(top: Path, depth: int | None = None, without: Collection[str] = ()) -> Walk:
    """Return what lies below a folder.

    Args:
        depth: levels of folders that are read; None: all.
        without: real paths of folders that are not entered.
    """
    found, entered = Walk(), set[str]()
    pending = [(top, 1)]
    while pending:
        folder, level = pending.pop()
        real = os.path.realpath(folder)
        if real in entered or real in without:
            continue
        entered.add(real)
        for entry in os.scandir(folder):
            path = folder / entry.name
            if is_hidden(entry.name):
                continue
            if entry.is_dir():
                found.folders.append(path)
                if depth is None or level < depth:
                    pending.append((path, level + 1))
            elif entry.is_file():
                (found.texts if is_text(entry.name) else found.others).append(path)
            elif entry.is_symlink():
                found.dangling.append(path)
    for paths in (found.texts, found.others, found.folders, found.dangling):
        paths.sort(key=lambda path: [natural_order(part) for part in path.relative_to(top).parts])
    return found


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, as fastai skips them, or made by macOS."""
    return name.startswith(".") or name in SKIPPED


def is_text(name: str) -> bool:
    """Return whether a file is a text, by its name."""
    lower = name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        lower = lower.removesuffix(suffix)
    return lower.endswith(".txt")
