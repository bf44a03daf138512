"""Labels and splits of your own, for the folder that BBC News is: a class from the path, every fifth article to validate on.

    python -m ulmfit_dist prepare configs/quickstart.yaml \
        data.get_y=examples.own_labels.is_sports data.splitter=examples.own_labels.every_fifth --show 3

fastai's `get_y` and `splitter` as functions of one document: of its path in a folder, of its row, a mapping, in a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def is_sports(path: Path) -> str:
    """Two classes out of five."""
    return "sports" if path.parent.name == "sports" else "other"


def every_fifth(path: Path) -> bool:
    """Whether an article validates: as fastai's `FuncSplitter` asks."""
    return int(path.stem) % 5 == 0


def label_of_row(row: Mapping[str, str]) -> str | None:
    """Of a table of reviews: stars as a class, three of them as no label."""
    stars = int(row["stars"])
    return None if stars == 3 else "good" if stars > 3 else "bad"
