"""Comparison of two runs on the same documents, or of two groups of runs with several seeds.

Trade-off: a pair of runs shows whether these two models differ beyond the choice of documents; several seeds show whether
the way of training does, at the cost of more runs. Both need the predictions that every run writes (`predictions.parquet`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ulmfit_dist.data.prediction_table import read_predictions
from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.paired import MCNEMAR
from ulmfit_dist.report.paired_runs import pair_runs, shown, shown_p
from ulmfit_dist.stages.compare_seeds import compare_seeds, name_side

FORMS = "compare two runs, 'ulmfit-dist compare A B', or two groups of runs, 'ulmfit-dist compare A-1 A-2 -- B-1 B-2'"
Runs = str | Path | Sequence[str | Path]
Figures = dict[str, Any]


def compare(first: Runs, second: Runs) -> Figures:
    """Compare two runs, or two groups of runs.

    Args:
        first, second: run directories; lists of them are compared by mean and standard deviation over their runs.

    Returns:
        `first`, `second`, `split`, `metrics` by name with the figure of each side, `difference` (second minus first) and
        `interval` (95 %), and `conclusion`, a sentence. For two runs also `num_documents` and `test`, a significance test;
        for groups also `remarks`.

    Raises:
        UserError: a run or its predictions are missing, or documents, labels or targets differ.
    """
    is_pair = [isinstance(side, (str, Path)) for side in (first, second)]
    sides = [[Path(side)] if isinstance(side, (str, Path)) else list(map(Path, side)) for side in (first, second)]
    if not all(sides):
        raise UserError(f"no run on {'both sides' if not any(sides) else 'one side'} of the comparison: {FORMS}")
    _check_different([run for side in sides for run in side])
    if all(is_pair):
        figures = _compare_pair(sides[0][0], sides[1][0])
    else:
        figures = compare_seeds([read_predictions(run) for run in sides[0]], [read_predictions(run) for run in sides[1]])
    as_json: Figures = _as_json(figures)
    return as_json


def compare_arguments(runs: Sequence[Path], against: Sequence[Path] | None) -> Figures:
    """Compare the runs of a command line; `against`: the runs after `--`; None without `--`. Raises UserError."""
    if against is not None:
        return compare(runs, against)
    if len(runs) != 2:
        raise UserError(f"{len(runs)} run(s) and no '--' between two groups: {FORMS}")
    return compare(*runs)


def describe_comparison(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table of the figures of `compare`."""
    is_pair = isinstance(figures["first"], str)
    names = [figures["first"], figures["second"]] if is_pair else [name_side(figures["first"]), name_side(figures["second"])]
    yield from _describe_documents(figures) if is_pair else _describe_seeds(figures)
    metrics = figures["metrics"]
    columns: list[list[str]] = [["", *names, "difference", "95 % interval"]]
    for name, metric in metrics.items():
        sides = [_shown_side(metric["first"]), _shown_side(metric["second"])]
        columns.append([name, *sides, _shown(metric["difference"], "+"), _shown_interval(metric["interval"])])
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        label, *cells = row
        yield "   ".join(
            [label.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        )
    yield from _describe_test(figures["test"], names) if is_pair else figures["remarks"]
    yield figures["conclusion"]


def _check_different(runs: Sequence[Path]) -> None:
    seen: set[str] = set()
    for run in runs:
        path = os.path.realpath(run)
        if path in seen:
            raise UserError(f"{run} is given twice: compare different runs")
        seen.add(path)


def _compare_pair(first: Path, second: Path) -> Figures:
    pair = pair_runs(read_predictions(first), read_predictions(second))
    test = pair.figures.test
    return {
        "first": str(first),
        "second": str(second),
        "split": pair.split,
        "num_documents": pair.figures.num_documents,
        "metrics": {
            name: {
                "first": metric.first,
                "second": metric.second,
                "difference": metric.difference,
                "interval": [metric.low, metric.high],
            }
            for name, metric in pair.figures.differences.items()
        },
        "test": {
            "name": test.name,
            "metric": pair.figures.tested,
            "first_better": test.first_better,
            "second_better": test.second_better,
            "p": test.p,
        },
        "conclusion": pair.conclude(str(first), str(second)),
    }


def _as_json(value: Any) -> Any:
    """Return the figures with None for NaN and infinity, which JSON cannot represent."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _describe_documents(figures: Mapping[str, Any]) -> Iterator[str]:
    note = "" if figures["split"] == "test" else " (no labelled test split: these documents may have selected the models)"
    yield f"{figures['split']}: {figures['num_documents']:,} documents, the same in both{note}"


def _describe_seeds(figures: Mapping[str, Any]) -> Iterator[str]:
    numbers = f"n = {len(figures['first'])} and {len(figures['second'])}"
    note = "" if figures["split"] == "test" else " (no labelled test split: these documents may have selected the models)"
    yield f"{figures['split']}: mean ± sample standard deviation over runs, {numbers}{note}"


def _describe_test(test: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    criterion = "only {} is correct on" if test["name"] == MCNEMAR else "{} has the smaller error on"
    counts = ", ".join(
        f"{criterion.format(name)} {test[key]:,}" for name, key in zip(names, ("first_better", "second_better"), strict=True)
    )
    yield f"{test['name']} ({test['metric']}): {counts}; {shown_p(test['p'])}"


def _shown(value: float | None, sign: str = "") -> str:
    if value is None:
        return "-"
    return f"+{shown(value)}" if sign and value > 0 else shown(value)


def _shown_side(value: Any) -> str:
    if not isinstance(value, Mapping):
        return _shown(value)
    return _shown(value["mean"]) + (f" ± {_shown(value['std'])}" if value["std"] is not None else "")


def _shown_interval(interval: Sequence[float | None] | None) -> str:
    return "-" if interval is None or None in interval else f"{_shown(interval[0])} to {_shown(interval[1])}"
