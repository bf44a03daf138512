"""User-defined labels and splits for the folder of BBC News: classes from paths, every fifth article for validation.

    python -m ulmfit_dist prepare configs/quickstart.yaml \
        data.get_y=examples.custom_labels.is_sports data.splitter=examples.custom_labels.every_fifth --show 3

fastai's `get_y` and `splitter` as functions of one document: of its path in a folder, or of its row (a mapping) in a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def is_sports(path: Path) -> str:
    """Return one of two classes, made from the five of BBC News."""
    return "sports" if path.parent.name == "sports" else "other"


def every_fifth(path: Path) -> bool:
    """Return whether an article is for validation, as in fastai's `FuncSplitter`."""
    return int(path.stem) % 5 == 0


def label_of_row(row: Mapping[str, str]) -> str | None:
    """Return the class of a review by its stars; None (no label) for three stars."""
    stars = int(row["stars"])
    return None if stars == 3 else "good" if stars > 3 else "bad"
