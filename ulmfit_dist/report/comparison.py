"""Comparison of runs: a table of final figures, and the config keys that differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ulmfit_dist.report.runs import STAGES, Run


class Column(NamedTuple):
    """Figure of summary.json; `better` is +1 if higher is better, -1 if lower is better."""

    stage: str
    name: str
    label: str
    digits: int
    better: int


COLUMNS = (
    Column("lm", "valid_loss", "loss", 4, -1),
    Column("lm", "perplexity", "perplexity", 2, -1),
    Column("lm", "accuracy", "accuracy", 4, 1),
    Column("lm", "tokens_per_second", "tokens/s", 0, 1),
    Column("classifier", "valid_loss", "loss", 4, -1),
    Column("classifier", "accuracy", "accuracy", 4, 1),
    Column("classifier", "f1_macro", "macro-F1", 4, 1),
    Column("classifier", "examples_per_second", "documents/s", 0, 1),
)
SECONDS = ("prepare", *STAGES)
"""Parts of a run that have a duration."""


@dataclass(frozen=True)
class Cell:
    """Cell of the table.

    Attributes:
        value: exact value; None if the run has none.
        shown: the value as text.
        is_best: True if no other run has a better value.
        is_final: True if the stage is finished.
    """

    value: float | None
    shown: str
    is_best: bool = False
    is_final: bool = True


def figure_rows(runs: Sequence[Run]) -> list[list[Cell]]:
    """Return a row of figures per run, in the order of `COLUMNS`."""
    columns = [_column(runs, column) for column in COLUMNS]
    return [list(row) for row in zip(*columns, strict=True)]


def time_rows(runs: Sequence[Run]) -> list[list[Cell]]:
    """Return a row of durations per run, in the order of `SECONDS`."""
    return [[Cell(run.seconds.get(part), duration(run.seconds.get(part))) for part in SECONDS] for run in runs]


def differing_keys(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the config keys that differ between the runs, with each run's value ("" if it has none)."""
    keys = sorted({key for run in runs for key in run.config} - {"name"})
    rows = [(key, [run.config.get(key, "") for run in runs]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def figure(value: float | None, digits: int) -> str:
    """Return a figure as text, with a dash for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    return f"{value:,.{digits}f}" if abs(value) < 1e9 else f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Return a duration in seconds, minutes or hours as text."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0 or seconds > 1e10:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _column(runs: Sequence[Run], column: Column) -> list[Cell]:
    values = [run.stages[column.stage].figures.get(column.name) for run in runs]
    finite = [value * column.better for value in values if value is not None and math.isfinite(value)]
    best = max(finite) if len(finite) > 1 and max(finite) > min(finite) else None
    return [
        Cell(
            value,
            figure(value, column.digits),
            is_best=best is not None and value is not None and value * column.better == best,
            is_final=run.stages[column.stage].is_finished,
        )
        for run, value in zip(runs, values, strict=True)
    ]
