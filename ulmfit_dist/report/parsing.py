"""Values of a JSON or YAML file that somebody else may have written: each is what it should be, or is not there."""

from __future__ import annotations

import math
from typing import Any

MOST_TEXT = 6000
"""Characters of a text that are shown."""


def number(value: Any) -> float | None:
    """A number, NaN and infinity included; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any, most: int) -> list[Any]:
    """The value's first `most` items if it is a list, else none."""
    return value[:most] if isinstance(value, list) else []


def numbers(value: Any) -> dict[str, float]:
    """Those of a mapping's values that are numbers."""
    found = {str(key): number(item) for key, item in mapping(value).items()}
    return {key: item for key, item in found.items() if item is not None}


def text(value: Any) -> str:
    """Text to show, of bounded length; empty for null."""
    shown = "" if value is None else str(value)
    return shown if len(shown) <= MOST_TEXT else f"{shown[:MOST_TEXT]} …"
