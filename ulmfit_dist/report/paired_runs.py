"""Paired comparison of two runs on the same documents, from their predictions.

Documents are the same if the digests of their texts and their labels are equal. Trade-off: runs on different documents are
rejected; there is no comparison on the common part, because its figures would differ from those of the runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ulmfit_dist.data.prediction_table import Predictions, read_predictions
from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.paired import LOWER_IS_BETTER, PairedFigures, compare_answers
from ulmfit_dist.utils.text_table import plain

SIGNIFICANCE = 0.05
"""Maximum p of a significant difference."""


@dataclass(frozen=True)
class PairedRuns:
    """Figures of two runs on a split, `valid` or `test`."""

    split: str
    figures: PairedFigures

    def conclude(self, first: str, second: str) -> str:
        """Return the conclusion on the tested metric as a sentence; `first` and `second` are the names of the runs."""
        name, test = self.figures.tested, self.figures.test
        paired = self.figures.differences[name]
        if test.first_better == test.second_better == 0:
            return f"no difference in {name}: {first} and {second} are equally good on every document"
        return conclude(name, first, second, paired.difference, (paired.low, paired.high), test.p)


def pair_runs(first: Predictions, second: Predictions) -> PairedRuns:
    """Compare two runs on their test documents, or, if neither has any, on their validation documents.

    Raises:
        UserError: documents, labels or targets of the runs differ.
    """
    split = common_split([first, second])
    check_labels(first, second)
    one, other = first.splits[split], second.splits[split]
    if (one.texts, len(one.y)) != (other.texts, len(other.y)):
        advice = (
            "train both with the same seed, data.valid_pct and texts"
            if split == "valid"
            else "give both the same test split"
        )
        raise UserError(
            f"{second.run} was evaluated on other {split} documents ({len(other.y):,}) than {first.run} ({len(one.y):,}), "
            f"or in another order: {advice}"
        )
    differing = one.y != other.y
    if num_differing := int((differing if differing.ndim == 1 else differing.any(1)).sum()):
        raise UserError(
            f"{second.run} has other labels than {first.run} for {num_differing:,} of the {len(one.y):,} {split} documents: "
            f"train both on the same labels"
        )
    figures = compare_answers(one.answers, other.answers, one.y, first.target, (first.threshold, second.threshold))
    return PairedRuns(split, figures)


def common_split(runs: Sequence[Predictions]) -> str:
    """Return `test` if all runs have a labelled test split, `valid` if none has. Raises UserError otherwise."""
    tested = [run for run in runs if "test" in run.splits]
    if not tested:
        return "valid"
    for run in runs:
        if "test" not in run.splits:
            raise UserError(
                f"{run.run} has no figures on a test split, {tested[0].run} has: train both on texts with the same test "
                f"split, or both without"
            )
    return "test"


def check_labels(first: Predictions, second: Predictions) -> None:
    """Raise UserError if the runs have different targets or labels."""
    if first.target != second.target:
        raise UserError(
            f"{second.run} has classifier.target={second.target}, {first.run} {first.target}: only runs of the same target "
            f"can be compared"
        )
    if first.labels != second.labels:
        raise UserError(
            f"{second.run} has other labels ({_named(second.labels)}) than {first.run} ({_named(first.labels)}): only runs "
            f"of the same labels can be compared"
        )


def pair_with_first(runs: Sequence[Path]) -> list[PairedRuns | str]:
    """Compare each later run with the first one; return the reason instead where that is not possible."""
    first, *others = [_read_or_explain(run) for run in runs]
    pairs: list[PairedRuns | str] = []
    for other in others:
        try:
            if isinstance(first, UserError):
                raise first
            if isinstance(other, UserError):
                raise other
            pairs.append(pair_runs(first, other))
        except UserError as error:
            pairs.append(str(error))
    return pairs


def conclude(
    metric: str, first: str, second: str, difference: float, interval: Sequence[float], p: float | None = None
) -> str:
    """Return the conclusion from a difference (second minus first) as a sentence.

    A run is better if the interval excludes 0 and p, if given, is below `SIGNIFICANCE`.
    """
    low, high = interval
    excludes_zero = low > 0 or high < 0
    if excludes_zero and (p is None or p < SIGNIFICANCE):
        better = second if (difference > 0) is not (metric in LOWER_IS_BETTER) else first
        low, high = sorted((abs(low), abs(high)))
        return f"{better} is better by {shown(abs(difference))} in {metric} ({shown(low)} to {shown(high)})"
    sentence = f"the difference of {shown(difference)} in {metric} may be chance ({shown(low)} to {shown(high)}"
    if p is not None and excludes_zero is not (p < SIGNIFICANCE):
        return f"{sentence}, {'but' if excludes_zero else 'although'} {shown_p(p)})"
    return f"{sentence})"


def shown(value: float) -> str:
    """Return a figure as text with four decimals, or with few significant digits if it is large or tiny."""
    if abs(value) < 1e-12 or 0.00005 <= abs(value) < 100:
        return f"{value:.4f}".replace("-0.0000", "0.0000")
    return f"{value:.5g}" if abs(value) >= 100 else f"{value:.1e}"


def shown_p(p: float) -> str:
    """Return a p value as text."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" if p < 0.1 else f"p = {p:.2f}"


def _read_or_explain(run: Path) -> Predictions | UserError:
    try:
        return read_predictions(run)
    except UserError as error:
        return error


def _named(labels: Sequence[str]) -> str:
    named = ", ".join(plain(label)[:40] for label in labels[:5])
    return f"{named}, ... {len(labels)} in all" if len(labels) > 5 else named
