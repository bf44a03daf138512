"""Terminal output of a run: a row per epoch, and a table at its end.

Each row is made from a line of metrics.jsonl, so epochs of earlier starts are printed like those of this one. Trade-off: a
row shows only what metrics.jsonl holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ulmfit_dist.config.schema import Phase
from ulmfit_dist.tracking.jsonl import is_epoch
from ulmfit_dist.tracking.metric_logger import MetricRow
from ulmfit_dist.utils.formatting import describe_processes, duration
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

WIDTHS = {"stage": 10, "phase": 7, "epoch": 7, "per second": 16, "time": 9}
"""Widths of columns, in characters, where they differ from the default."""
EPOCH_COLUMNS = {
    "lm": ("train_loss", "valid_loss", "perplexity", "accuracy", "tokens/s"),
    "classifier": ("train_loss", "valid_loss", "accuracy", "f1_macro", "examples/s"),
    "regression": ("train_loss", "valid_loss", "rmse", "mae", "r2", "examples/s"),
}
"""Columns of an epoch, by stage; a classifier with numeric targets has those of `regression`."""
FINAL_METRICS = ("valid_loss", "perplexity", "accuracy", "f1_macro")
REGRESSION_METRICS = ("rmse", "mae", "r2")

MAIN_METRICS = ("f1_micro", "accuracy", "rmse")
"""Metrics that classifiers are compared by, in order of preference."""
LESS_IS_BETTER = ("rmse",)
"""Main metrics for which lower is better."""


class EpochTable:
    """Table of a stage's epochs.

    Args:
        stage: "lm" or "classifier".
        phases: training phases of the stage.
        target: `classifier.target`.
        user_metrics: names of the user-defined metrics.
    """

    def __init__(self, stage: str, phases: Sequence[Phase], target: str = "category", user_metrics: Sequence[str] = ()):
        self.stage, self.phases = stage, phases
        *columns, speed = EPOCH_COLUMNS["regression" if (stage, target) == ("classifier", "regression") else stage]
        self.columns = (*columns, *user_metrics, speed)

    def header(self) -> str:
        """Return the column names as a row."""
        columns = ("stage", "phase", "epoch", *self.columns, "time")
        return _row(columns, columns)

    def baseline_row(self, figures: Mapping[str, Any]) -> str:
        """Return the row of the baseline's figures (of `compute_baseline`) on the validation documents."""
        valid = {**figures["valid"], "valid_loss": figures["valid"].get("loss")}
        cells = [_shown(column, valid.get(column)) for column in self.columns]
        return _row(
            ("stage", "phase", "epoch", *self.columns, "time"), ("baseline", "", "", *cells, duration(figures["seconds"]))
        )

    def row(self, line: Mapping[str, Any]) -> str:
        """Return the row of an epoch from its line of metrics.jsonl."""
        phase, epoch = int(line["phase"]), int(line["epoch"])
        within = epoch - sum(phase.epochs for phase in self.phases[:phase])
        of_phase = f"{within}/{self.phases[phase].epochs}" if phase < len(self.phases) else str(within)
        values = [_shown(column, line.get(f"{self.stage}/{column.replace('/s', '_per_second')}")) for column in self.columns]
        time = duration(line.get(f"{self.stage}/epoch_seconds"))
        cells = (self.stage, str(phase + 1), of_phase, *values, time)
        return _row(("stage", "phase", "epoch", *self.columns, "time"), cells)


class ConsoleLogger:
    """Prints a row of the table of the running stage at the end of each epoch.

    Attributes:
        table: table of the running stage.
    """

    def __init__(self, table: EpochTable):
        self.table = table

    def log(self, row: MetricRow) -> None:
        """Print the row of an epoch."""
        if row.line is not None and is_epoch(row.line):
            logger.info(self.table.row(row.line))

    def summarize(self, figures: Mapping[str, float], row: int) -> None:
        """Do nothing: `final_table` prints the figures of all stages at the end."""

    def finish(self, exit_code: int) -> list[str]:
        """Return no lines."""
        return []


def final_table(summary: Mapping[str, Any]) -> Iterable[str]:
    """Yield the lines of the final table, a row per stage, from the content of summary.json."""
    precision = summary["precision"]
    yield f"{summary['name']}: {describe_processes(summary['world_size'])}, {summary['device']}, {precision}"
    metrics = [*FINAL_METRICS, *(name for name in REGRESSION_METRICS if name in summary.get("classifier", {}))]
    columns = ("stage", *metrics, "per second", "time")
    yield _row(columns, columns)
    baseline = summary.get("baseline")
    if baseline is not None and "classifier" in summary:
        valid = {**baseline["valid"], "valid_loss": baseline["valid"].get("loss")}
        values = [_shown(name, valid.get(name)) for name in metrics]
        yield _row(columns, ("baseline", *values, "", duration(baseline["seconds"])))
    for stage, seconds in summary["seconds"].items():
        figures = summary.get(stage, {})
        rates = [f"{value:,.0f} {name.split('_')[0]}" for name, value in figures.items() if name.endswith("_per_second")]
        values = [_shown(name, figures.get(name)) for name in metrics]
        yield _row(columns, (stage, *values, *(rates or [""]), duration(seconds)))
    if test := summary.get("classifier", {}).get("test"):
        if baseline is not None and "test" in baseline:
            yield f"baseline on test: {', '.join(_with_intervals(baseline['test']))}"
        yield describe_test(test)
    if summary.get("valid_is_test"):
        yield "warning: the validation split is the test split: these figures were also used to select the model"


def plan_row(*cells: str) -> str:
    """Return a row of the plan of a run: stage, epochs, steps, parameters and expected duration."""
    return f"{cells[0]:<10}" + "".join(f"{cell:>14}" for cell in cells[1:]).rstrip()


def describe_test(figures: Mapping[str, Any]) -> str:
    """Return the metrics on a test split, with their 95 % intervals, as one line."""
    return f"test, {figures['num_documents']:,} documents, 95 % intervals: {', '.join(_with_intervals(figures))}"


def read_scores(run: Path) -> Iterator[str]:
    """Yield the figures of a run's baseline and classifier on its test split, or else on its validation split."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    classifier = summary["classifier"]
    models = {"baseline": summary.get("baseline", {}), "classifier": {"valid": classifier, "test": classifier.get("test")}}
    for name, sides in models.items():
        side = "test" if sides.get("test") else "valid"
        if figures := sides.get(side):
            shown = [*_with_intervals(figures)] or [
                f"{metric} {figures[metric]:.4f}" for metric in MAIN_METRICS if metric in figures
            ]
            yield f"{name:<11} on {side}: {', '.join(shown)}"


def _with_intervals(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield each metric that has an interval, with its interval."""
    for name, value in figures.items():
        if isinstance(interval := figures.get(f"{name}_interval"), list):
            low, high = (f"{end:.4f}" for end in interval)
            yield f"{name} {value:.4f} ({low} to {high})"


def _row(columns: Sequence[str], cells: Sequence[str]) -> str:
    first, *rest = (WIDTHS.get(column, max(12, len(column) + 2)) for column in columns)
    return f"{cells[0]:<{first}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], rest, strict=True))


_FORMATS: dict[str, Callable[[float], str]] = {
    "perplexity": lambda value: f"{value:,.2f}",
    "tokens/s": lambda value: f"{value:,.0f}",
    "examples/s": lambda value: f"{value:,.0f}",
}


def _shown(column: str, value: float | None) -> str:
    return "" if value is None else _FORMATS.get(column, "{:.4f}".format)(value)
