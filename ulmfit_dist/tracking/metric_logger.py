"""`MetricLogger`: the interface of everything that records the metrics of a run.

Metrics.jsonl, the terminal, W&B and Accelerate's trackers implement it. All of them get the same rows, with the names of
W&B and the row's number as the step. Trade-off: models, which only W&B stores, are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ulmfit_dist.tracking.jsonl import metrics_of, row_number


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class MetricRow:
    """A row of a run's history.

    Attributes:
        number: number of the row, which trackers use as the step; it depends on stage and step only.
        values: metrics by name.
        line: the line of metrics.jsonl; None for rows without one.
        tables: tables by name, for backends that show them.
    """

    number: int
    values: Mapping[str, Any]
    line: Mapping[str, Any] | None = None
    tables: Mapping[str, Table] = field(default_factory=dict)


class MetricLogger(Protocol):
    """Backend that records metrics. Calls are made on rank 0, in order, and must neither fail nor block for long."""

    def log(self, row: MetricRow) -> None:
        """Record a row."""

    def summarize(self, figures: Mapping[str, float], row: int) -> None:
        """Record final figures of a stage, by name.

        Args:
            row: number of the row after the last one of the stage.
        """

    def finish(self, exit_code: int) -> list[str]:
        """Finish recording.

        Args:
            exit_code: 0: success; `RESUMABLE`: the run will resume.

        Returns:
            Lines that say how to view the records.
        """


def row_of(line: Mapping[str, Any], first: int, tables: Mapping[str, Table] | None = None) -> MetricRow:
    """Return the row of a line of metrics.jsonl; `first` is the number of its stage's first row."""
    return MetricRow(row_number(line, first), metrics_of(line), line, tables or {})
