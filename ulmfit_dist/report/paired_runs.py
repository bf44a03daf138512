"""Two runs compared on the same documents, by their predictions; and what can be concluded.

Documents are the same where the digests of their texts and their labels are equal. What is not provably the same is refused,
never left out: a difference on half of the documents would be another figure.
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
"""Highest p of a difference that is no chance."""


@dataclass(frozen=True)
class PairedRuns:
    """Figures of two runs on a split, `valid` or `test`."""

    split: str
    figures: PairedFigures

    def conclude(self, first: str, second: str) -> str:
        """Return a sentence on the tested metric, for runs of these names."""
        name, test = self.figures.tested, self.figures.test
        found = self.figures.differences[name]
        if test.first_better == test.second_better == 0:
            return f"no difference in {name}: {first} and {second} are equally good on every document"
        return conclude(name, first, second, found.difference, (found.low, found.high), test.p)


def pair_runs(first: Predictions, second: Predictions) -> PairedRuns:
    """Compare two runs on their test documents; where neither has any, on their validation documents.

    Raises:
        UserError: other documents, labels or targets.
    """
    split = common_split([first, second])
    check_labels(first, second)
    mine, theirs = first.splits[split], second.splits[split]
    if (mine.texts, len(mine.y)) != (theirs.texts, len(theirs.y)):
        advice = (
            "train both with the same seed, data.valid_pct and texts"
            if split == "valid"
            else "give both the same test split"
        )
        raise UserError(
            f"{second.run} was measured on other {split} documents ({len(theirs.y):,}) than {first.run} ({len(mine.y):,}), "
            f"or in another order: {advice}"
        )
    differing = mine.y != theirs.y
    if number := int((differing if differing.ndim == 1 else differing.any(1)).sum()):
        raise UserError(
            f"{second.run} has other labels than {first.run} for {number:,} of the {len(mine.y):,} {split} documents: train "
            f"both on the same labels"
        )
    figures = compare_answers(mine.answers, theirs.answers, mine.y, first.target, (first.threshold, second.threshold))
    return PairedRuns(split, figures)


def common_split(runs: Sequence[Predictions]) -> str:
    """Return `test` where all runs have a labelled test split, `valid` where none has. Raises UserError."""
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
    """Refuse runs that were trained for different things. Raises UserError."""
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
    """Compare each later run with the first one; the reason, as a phrase, where that is not possible."""
    read = [_read_or_explain(run) for run in runs]
    first = read[0]
    found: list[PairedRuns | str] = []
    for other in read[1:]:
        try:
            if isinstance(first, UserError):
                raise first
            if isinstance(other, UserError):
                raise other
            found.append(pair_runs(first, other))
        except UserError as error:
            found.append(str(error))
    return found


def conclude(
    metric: str, first: str, second: str, difference: float, interval: Sequence[float], p: float | None = None
) -> str:
    """Return what can be concluded from a difference, second minus first, as a sentence.

    A run is called better where the interval leaves out 0, and p, if there is one, is below `SIGNIFICANCE`.
    """
    low, high = interval
    leaves_out_zero = low > 0 or high < 0
    if leaves_out_zero and (p is None or p < SIGNIFICANCE):
        better = second if (difference > 0) is not (metric in LOWER_IS_BETTER) else first
        low, high = sorted((abs(low), abs(high)))
        return f"{better} is better by {shown(abs(difference))} in {metric} ({shown(low)} to {shown(high)})"
    found = f"the difference of {shown(difference)} in {metric} may be chance ({shown(low)} to {shown(high)}"
    if p is not None and leaves_out_zero is not (p < SIGNIFICANCE):
        return f"{found}, {'but' if leaves_out_zero else 'although'} {shown_p(p)})"
    return f"{found})"


def shown(value: float) -> str:
    """Return a figure as text: four digits behind the point, or fewer digits in all where it is large or tiny."""
    if abs(value) < 1e-12 or 0.00005 <= abs(value) < 100:
        return f"{value:.4f}".replace("-0.0000", "0.0000")
    return f"{value:.5g}" if abs(value) >= 100 else f"{value:.1e}"


def shown_p(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}" if p < 0.1 else f"p = {p:.2f}"


def _read_or_explain(run: Path) -> Predictions | UserError:
    try:
        return read_predictions(run)
    except UserError as error:
        return error


def _named(labels: Sequence[str]) -> str:
    named = ", ".join(plain(label)[:40] for label in labels[:5])
    return f"{named}, ... {len(labels)} in all" if len(labels) > 5 else named
