"""Metrics for a model card: those of the export and, if its run directory is there, of the test split and the baseline.

The summary of a run may be of a later training than an export in it, so its figures are used only if their validation
metrics are those of the export. Trade-off: an exported folder that was moved has only its validation metrics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from ulmfit_dist.models.bundle import ModelBundle
from ulmfit_dist.pretrained.bundle_files import LONGEST_TEXT
from ulmfit_dist.utils.files import read_bounded

METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "f1_macro": ("f1", "F1, macro"),
    "f1_micro": ("f1", "F1, micro"),
    "rmse": ("rmse", "RMSE"),
    "mae": ("mae", "MAE"),
    "r2": ("r_squared", "R²"),
    "perplexity": ("perplexity", "perplexity"),
}
"""Type on the hub, and name, of each metric of the card."""


@dataclass(frozen=True)
class Figure:
    """A metric of a model on a split, with the same metric of the linear baseline.

    Attributes:
        interval: lower and upper end of the 95 % interval; None if it was not computed.
    """

    split: str
    metric: str
    value: float
    interval: tuple[float, float] | None = None
    baseline: float | None = None


def read_figures(exported: ModelBundle) -> list[Figure]:
    """Return the metrics of a model, test split first: of the run's summary if it is of this model, else of the export."""
    metrics = _numbers(exported.training.get("metrics"))
    summary = _read_summary(exported.folder.parent / "summary.json")
    stage = "lm" if exported.labels is None else "classifier"
    of_stage, baseline = _mapping(summary.get(stage)), _mapping(summary.get("baseline"))
    if not metrics or _numbers(of_stage, metrics) != metrics:
        of_stage, baseline = {}, {}  # the run has been trained again since
    test = _mapping(of_stage.get("test"))
    figures = list(_figures("test", test, _mapping(baseline.get("test"))))
    is_classifier = exported.labels is not None
    return [*figures, *_figures("valid", metrics, _mapping(baseline.get("valid")) if is_classifier else {})]


def valid_is_test(exported: ModelBundle) -> bool:
    """Return whether the validation split of the run is the one that its source names test."""
    return _read_summary(exported.folder.parent / "summary.json").get("valid_is_test") is True


def _figures(split: str, figures: Mapping[str, Any], baseline: Mapping[str, Any]) -> Iterator[Figure]:
    for metric in METRICS:
        value, other, ends = figures.get(metric), baseline.get(metric), figures.get(f"{metric}_interval")
        if _is_number(value):
            interval = (float(ends[0]), float(ends[1])) if isinstance(ends, list) and len(ends) == 2 else None
            yield Figure(split, metric, value, interval, other if _is_number(other) else None)


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(read_bounded(path, LONGEST_TEXT)))
    except (OSError, ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(value: Any, names: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the finite numbers of a mapping, of these names only, if given."""
    return {
        name: number for name, number in _mapping(value).items() if _is_number(number) and (names is None or name in names)
    }


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
