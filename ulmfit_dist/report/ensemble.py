"""Ensemble of a run directory, for its report: members, temperatures, and figures of all combinations on valid.

Trade-off: members must be folders beside the run directory; others are not read, because the file may come from elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit_dist.report.parsing import items, mapping, number, numbers, text

MOST_MEMBERS = 100
COMMANDS = {
    "directions": ("run", "--both-directions"),
    "folds": ("cross-validate", "--ensemble"),
    "runs": ("ensemble", "--save"),
}
"""Command and option that make an ensemble, by its kind."""
METRICS = ("accuracy", "f1_macro", "f1_micro", "rmse", "mae", "r2")
"""Columns of the combinations beside the loss, as far as the target has them."""


@dataclass(frozen=True)
class EnsembleFigures:
    """An ensemble.

    Attributes:
        kind: directions, folds or runs.
        members: run directories of the members.
        temperatures: temperature of each, by name; None for numbers.
        linear_votes: the mean includes the linear model.
        metrics: names of the columns of `combinations`.
        combinations: loss and these metrics on valid, by the names of the voters.
        gain, standard_error: decrease of the loss by the linear model; None without one.
    """

    kind: str
    members: list[Path]
    temperatures: dict[str, float | None]
    linear_votes: bool
    metrics: list[str]
    combinations: dict[str, list[float | None]]
    gain: float | None
    standard_error: float | None


def read_ensemble_figures(path: Path, content: Mapping[str, Any]) -> EnsembleFigures | None:
    """Return the ensemble of a run directory from the content of its ensemble.json; None if it is not one."""
    kind = text(content.get("kind"))
    if kind not in COMMANDS:
        return None
    members, temperatures = list[Path](), dict[str, float | None]()
    for member in map(mapping, items(content.get("members"), MOST_MEMBERS)):
        match = re.fullmatch(r"\.\./(\w[\w.+-]*)", text(member.get("run")))
        if match is not None:
            members.append(path.absolute().parent / match[1])
            temperatures[match[1]] = number(member.get("temperature"))
            if member.get("linear") is not None:
                temperatures[f"linear model of {match[1]}"] = number(member.get("linear_temperature"))
    selection = mapping(content.get("selection"))
    combinations = {text(name): numbers(figures) for name, figures in mapping(selection.get("combinations")).items()}
    metrics = [name for name in METRICS if any(name in figures for figures in combinations.values())]
    return EnsembleFigures(
        kind,
        members,
        temperatures,
        content.get("linear_votes") is True,
        metrics,
        {name: [figures.get(key) for key in ("valid_loss", *metrics)] for name, figures in combinations.items()},
        number(selection.get("gain")),
        number(selection.get("standard_error")),
    )
