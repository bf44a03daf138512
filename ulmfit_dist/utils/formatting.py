"""Durations and numbers of processes as text."""

from __future__ import annotations


def describe_processes(number: int) -> str:
    """Return a number of processes as text."""
    return "1 process" if number == 1 else f"{number} processes"


def duration(seconds: float | None) -> str:
    """As `1:02:03`, or `2:03` within the hour."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
