"""Names of splits, the same for folders, files, hub data sets and texts from Python.

A fixed list of names, not a heuristic: a file of another name is reported as unused instead of being read as training data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPLIT_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "val", "dev", "eval"),
    "unlabelled": ("unlabelled", "unlabeled", "unsup", "unsupervised"),
    "test": ("test", "testing"),
}
"""Names of each split, in lower case; if a source has several, the first is used."""
PART = re.compile(r"(?P<name>[a-z]+)(?P<part>[-_. ]?\d+([-_. ]of[-_. ]\d+)?)?")
"""Name of a split, or of a numbered part of one."""
NAMED = 5
"""Maximum number of names in a message."""


def split_of_name(name: str) -> tuple[str, str, bool] | None:
    """Return the split, its name in `SPLIT_NAMES`, and whether it is a numbered part, as in `train-00000-of-00003`."""
    match = PART.fullmatch(name.lower())
    for split, names in SPLIT_NAMES.items():
        if match is not None and match["name"] in names:
            return split, match["name"], match["part"] is not None
    return None


def find_splits(names: Iterable[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the names that belong to each split, in natural order, and unused names.

    If a split has several names, the first of `SPLIT_NAMES` is used; a whole is preferred to numbered parts.
    """
    candidates: dict[str, dict[tuple[int, bool], list[str]]] = {}
    unused = []
    for name in sorted(names, key=natural_order):
        known = split_of_name(name)
        if known is None:
            unused.append(name)
        else:
            split, alias, is_part = known
            candidates.setdefault(split, {}).setdefault((SPLIT_NAMES[split].index(alias), is_part), []).append(name)
    splits = {}
    for split in SPLIT_NAMES:
        first, *others = [candidates[split][rank] for rank in sorted(candidates.get(split, {}))] or [[]]
        if first:
            splits[split] = first
        unused += [name for names in others for name in names]
    return splits, unused


def natural_order(name: str) -> list[Any]:
    """Return a sort key by which `2` precedes `10`."""
    parts = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    return [parts, name]


def listed(names: Iterable[str]) -> str:
    """Return the first names and the number of the others, as text."""
    names = list(names)
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def count_files(number: int) -> str:
    """Return a number of files as text."""
    return "1 file" if number == 1 else f"{number:,} files"


def files_by_ending(endings: Mapping[str, Sequence[str]]) -> list[str]:
    """Return, for each ending, the names of the first files and their number, as text."""
    return [
        f"{listed(names)} ({count_files(len(names))}{f' with the ending {ending}' if ending else ''})"
        for ending, names in sorted(endings.items())
    ]
