"""Durations and numbers of processes as text."""

from __future__ import annotations


def describe_processes(number: int) -> str:
    """Return a number of processes as text, such as `2 processes`."""
    return "1 process" if number == 1 else f"{number} processes"


def duration(seconds: float | None) -> str:
    """Return a duration as `1:02:03`, or `2:03` below an hour; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
