"""Typed values from untrusted JSON or YAML: a value of another type is treated as missing."""

from __future__ import annotations

import math
from typing import Any

MOST_TEXT = 6000
"""Maximum number of characters of a text that is shown."""


def number(value: Any) -> float | None:
    """Return a number, which may be NaN or infinite; None for any other value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def mapping(value: Any) -> dict[str, Any]:
    """Return the value if it is a mapping, else an empty mapping."""
    return value if isinstance(value, dict) else {}


def items(value: Any, most: int) -> list[Any]:
    """Return the first `most` items of the value if it is a list, else an empty list."""
    return value[:most] if isinstance(value, list) else []


def numbers(value: Any) -> dict[str, float]:
    """Return the values of a mapping that are numbers."""
    values = {str(key): number(item) for key, item in mapping(value).items()}
    return {key: item for key, item in values.items() if item is not None}


def text(value: Any) -> str:
    """Return a value as text of bounded length; empty for null."""
    shown = "" if value is None else str(value)
    return shown if len(shown) <= MOST_TEXT else f"{shown[:MOST_TEXT]} …"
