"""Recursive listing of text files: hidden files are skipped, links followed, and each real folder is listed once.

`Path.rglob` does not follow links to folders, which data sets on clusters often are; a link to a parent ends by the second
rule. Trade-off: a `realpath` per folder.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from ulmfit_dist.data.sources.line_stream import COMPRESSED_SUFFIXES
from ulmfit_dist.data.sources.split_names import natural_order

SKIPPED = ("__MACOSX",)
"""Names of folders that hold no data, besides hidden ones."""


@dataclass
class Walk:
    """Files and folders below a folder, in natural order.

    Attributes:
        texts: .txt files, plain or compressed; the ending in any case.
        others: all other files.
        folders: folders; only those of the first level if the depth is 1.
        dangling: broken links.
    """

    texts: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    dangling: list[Path] = field(default_factory=list)


def walk(top: Path, depth: int | None = None, without: Collection[str] = ()) -> Walk:
    """Return the files and folders below a folder.

    Args:
        depth: number of levels; None: all.
        without: real paths of folders to skip.
    """
    listing, entered = Walk(), set[str]()
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
                listing.folders.append(path)
                if depth is None or level < depth:
                    pending.append((path, level + 1))
            elif entry.is_file():
                (listing.texts if is_text(entry.name) else listing.others).append(path)
            elif entry.is_symlink():
                listing.dangling.append(path)
    for paths in (listing.texts, listing.others, listing.folders, listing.dangling):
        paths.sort(key=lambda path: [natural_order(part) for part in path.relative_to(top).parts])
    return listing


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden (fastai skips those, too), or metadata of macOS."""
    return name.startswith(".") or name in SKIPPED


def is_text(name: str) -> bool:
    """Return whether a file name ends in .txt, or .txt and a compression suffix."""
    lower = name.lower()
    for suffix in COMPRESSED_SUFFIXES:
        lower = lower.removesuffix(suffix)
    return lower.endswith(".txt")
