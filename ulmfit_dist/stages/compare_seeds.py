"""Comparison of two groups of runs: means, standard deviations, and Welch's interval of the difference.

The runs of a group usually differ in their seed. On a test split all runs must be evaluated on the same documents.
Validation documents often depend on the seed, so they may differ, and a remark is added. Trade-off: the intervals are wider
than those of a paired comparison, but cover the training seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from ulmfit_dist.data.prediction_table import Predictions
from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.paired import TESTED
from ulmfit_dist.metrics.resampling import sample_of
from ulmfit_dist.report.paired_runs import check_labels, common_split, conclude, shown

CONFIDENCE = 0.95
"""Confidence level of the interval."""


def compare_seeds(first: Sequence[Predictions], second: Sequence[Predictions]) -> dict[str, Any]:
    """Compare two groups of at least one run each.

    Returns:
        As `compare`; the figure of a group is its `mean`, `std` (sample standard deviation; None for one run) and `values`.

    Raises:
        UserError: targets, labels or test documents of the runs differ.
    """
    runs = [*first, *second]
    for run in runs[1:]:
        check_labels(runs[0], run)
    split = common_split(runs)
    remarks = _check_documents(first, second, split)
    first_figures, second_figures = ([_figures(run, split) for run in side] for side in (first, second))
    metrics = {
        name: _compare_values([run[name] for run in first_figures], [run[name] for run in second_figures])
        for name in first_figures[0]
    }
    first_names, second_names = ([str(run.run) for run in side] for side in (first, second))
    for names in (first_names, second_names):
        if len(names) == 1:
            remarks.append(f"{names[0]} is a single run: without a standard deviation, the difference has no interval")
    return {
        "first": first_names,
        "second": second_names,
        "split": split,
        "metrics": metrics,
        "remarks": remarks,
        "conclusion": _conclude(metrics, TESTED[runs[0].target], first_names, second_names),
    }


def welch_interval(first: Sequence[float], second: Sequence[float]) -> list[float] | None:
    """Return the 95 % interval of the second mean minus the first (Welch, 1947); None if both have no variance."""
    if min(len(first), len(second)) < 2:
        return None
    from scipy.stats import ttest_ind  # type: ignore[import-untyped]  # slow import, not needed for `--help`

    if np.ptp(first) == 0 == np.ptp(second):
        return None
    interval = ttest_ind(second, first, equal_var=False).confidence_interval(CONFIDENCE)
    return [float(interval.low), float(interval.high)]


def name_side(runs: Sequence[str]) -> str:
    """Return a common name of runs, such as `runs/a-*`."""
    if len(runs) == 1:
        return runs[0]
    prefix = "".join(
        characters[0] for characters in takewhile(lambda column: len(set(column)) == 1, zip(*runs, strict=False))
    )
    return f"{prefix}*" if prefix and not prefix.endswith("/") else f"{runs[0]} and {len(runs) - 1} more"


def _conclude(metrics: dict[str, Any], tested: str, first: Sequence[str], second: Sequence[str]) -> str:
    difference, interval = metrics[tested]["difference"], metrics[tested]["interval"]
    if interval is not None:
        return conclude(tested, name_side(first), name_side(second), difference, interval)
    reason = (
        "a single run has no standard deviation"
        if 1 in (len(first), len(second))
        else "the runs of each side have equal figures"
    )
    return f"the difference of {shown(difference)} in {tested} has no interval: {reason}"


def _compare_values(first: list[float], second: list[float]) -> dict[str, Any]:
    means = [statistics.fmean(values) for values in (first, second)]
    stds = [_std(values) for values in (first, second)]
    sides = [
        {"mean": mean, "std": std, "values": values} for mean, std, values in zip(means, stds, (first, second), strict=True)
    ]
    return {
        "first": sides[0],
        "second": sides[1],
        "difference": means[1] - means[0],
        "interval": welch_interval(first, second),
    }


def _std(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return statistics.stdev(values) if np.isfinite(values).all() else math.nan


def _figures(run: Predictions, split: str) -> dict[str, float]:
    side = run.splits[split]
    (figures,) = sample_of([side.answers], side.y, run.target, [run.threshold]).exact()
    return figures


def _check_documents(first: Sequence[Predictions], second: Sequence[Predictions], split: str) -> list[str]:
    """Return remarks on the documents of the runs. Raises UserError if test documents differ."""
    reference = first[0]
    expected = reference.splits[split]
    for run in (*first, *second):
        documents = run.splits[split]
        if documents.texts == expected.texts and np.array_equal(documents.y, expected.y):
            continue
        if split == "test":
            raise UserError(
                f"{run.run} was evaluated on other test documents or labels than {reference.run}: give all runs the same "
                f"test split"
            )
        texts = [sorted(run.splits[split].texts for run in side) for side in (first, second)]
        are_equal = texts[0] == texts[1]
        note = "the same ones in both groups" if are_equal else "not the same ones in both groups"
        return [f"the runs were validated on different documents ({note}): the variance is that of seeds and documents"]
    return []
