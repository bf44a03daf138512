"""The meaning of labels: one class, several, or a number. Pure functions of the labels and their counts.

Where two readings fit, the safer one is taken, and its reason printed: classes make no assumption about their order, so
whole numbers that repeat are classes, and `--target regression` says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ulmfit_dist.data.profile.columns import number_kind
from ulmfit_dist.data.targets import classes_of_label
from ulmfit_dist.errors import UserError

DELIMITERS = (";", "|", ",")
"""Delimiters of the labels in a cell, in the order in which they are tried."""
JOINED = 0.05
"""Share of documents with several labels from which on a delimiter counts."""
LONGEST_NAME = 40
"""Characters of the name of a class, in labels that are cut at a delimiter."""
SURE_CLASSES = 5
"""Distinct whole numbers that are classes without a doubt: 0 and 1, or one to five stars."""
MOST_NUMBERED = 50
"""Distinct whole numbers up to which they are classes."""
FEWEST_OF_A_CLASS = 5
"""Documents per class, on average, from which on values are classes."""
SCALES = ("rating", "ratings", "score", "scores", "grade", "stars", "points", "age", "year", "price")
"""Names of columns whose numbers measure something."""
RARE = 5
"""Documents of a class below which it is named as rare."""


@dataclass(frozen=True)
class LabelMeaning:
    """How labels are read.

    Attributes:
        target: `classifier.target`.
        reason: why.
        delimiter: `data.label_delim`, where it matters.
        missing: `data.missing_label`: the label that means none; None: no label does.
        missing_reason: why, where it is not the default.
    """

    target: str
    reason: str
    delimiter: str = ";"
    missing: str | None = "-1"
    missing_reason: str = ""


def read_labels(
    labels: Mapping[str, int], column: str, where: str, target: str | None = None, has_lists: bool = False
) -> LabelMeaning:
    """Return what labels mean.

    Args:
        labels: number of documents by label, as it is written; without those that are empty.
        column: what messages call them.
        where: what messages call the table.
        target: what the user says; None: to be found.
        has_lists: whether cells hold lists, which are joined by the delimiter.

    Raises:
        UserError: labels that are neither classes nor numbers, or may be either.
    """
    kind, separator = number_kind(labels), _delimiter(labels, sure=True)
    if target == "regression":
        if kind is None:
            odd = next(label for label in labels if number_kind([label]) is None)
            raise UserError(f"--target regression: {where}: label {odd!r} in column {column} is not a number")
        return LabelMeaning(target, "as --target says", missing=None, missing_reason="-1 is a number like others")
    if target == "multicategory" or (target is None and has_lists):
        reason = "cells hold lists" if has_lists else "as --target says"
        delimiter = ";" if has_lists else (_delimiter(labels, sure=False) or ";")
        return LabelMeaning("multicategory", reason, delimiter, *_missing(labels))
    if target is None and kind is None and separator is not None:
        joined = sum(number for label, number in labels.items() if len(classes_of_label(label, separator)) > 1)
        reason = f"{joined:,} of {sum(labels.values()):,} documents have several, separated by {separator!r}"
        return LabelMeaning("multicategory", reason, separator, *_missing(labels))
    if target == "category":
        return LabelMeaning(target, "as --target says", ";", *_missing(labels))
    _refuse_written_lists(labels, column, where)
    why = _numbers_as(labels, column, where, kind) if kind is not None else _words_as(labels, column, where)
    if why is None:
        return LabelMeaning(
            "regression", "numbers with a fraction", missing=None, missing_reason="-1 is a number like others"
        )
    return LabelMeaning("category", why, ";", *_missing(labels))


def count_classes(labels: Mapping[str, int], meaning: LabelMeaning) -> Counter[str]:
    """Return the number of documents of each class, largest first; empty for a regression."""
    counts: Counter[str] = Counter()
    if meaning.target == "regression":
        return counts
    for label, number in labels.items():
        if label == meaning.missing:
            continue
        for name in classes_of_label(label, meaning.delimiter) if meaning.target == "multicategory" else [label]:
            counts[name] += number
    return Counter(dict(counts.most_common()))


def _numbers_as(labels: Mapping[str, int], column: str, where: str, kind: str) -> str | None:
    """Return why numbers are classes; None where they are numbers."""
    if kind == "number":
        return None
    number, total = len(labels), sum(labels.values())
    if number <= SURE_CLASSES:
        return f"{number} distinct whole numbers: classes (--target regression if their order and distance count)"
    values = sorted(float(label) for label in labels)
    counts_from_zero = values == [float(i) for i in range(number)]
    is_scale = column.lower() in SCALES and not counts_from_zero
    if number > MOST_NUMBERED or total / number < FEWEST_OF_A_CLASS or is_scale:
        raise UserError(
            f"{where}: column {column} has {number:,} distinct whole numbers from {values[0]:g} to {values[-1]:g}: are they "
            f"classes or a quantity? Give --target category or --target regression"
        )
    return f"{number} distinct whole numbers that repeat: classes (--target regression if their order and distance count)"


def _words_as(labels: Mapping[str, int], column: str, where: str) -> str:
    number, total = len(labels), sum(labels.values())
    if number > total / 2 and number > SURE_CLASSES:
        raise UserError(
            f"{where}: column {column} has {number:,} distinct values in {total:,} rows, which are no classes: give another "
            f"--label COL, or --label none for a language model alone"
        )
    return f"{number:,} distinct words or phrases"


def _delimiter(labels: Mapping[str, int], sure: bool) -> str | None:
    """Return what separates the labels of a cell; None where nothing does.

    Args:
        sure: take a delimiter only if the names that it joins are joined in several ways, as those of real labels are.
    """
    total = sum(labels.values())
    for delimiter in DELIMITERS:
        parts = {label: classes_of_label(label, delimiter) for label in labels}
        joined = {label: names for label, names in parts.items() if len(names) > 1}
        if not joined or (sure and sum(labels[label] for label in joined) < JOINED * total):
            continue
        if not sure:
            return delimiter
        kept_apart = Counter(name for names in parts.values() for name in set(names))
        involved = {name for names in joined.values() for name in names}
        recurring = sum(kept_apart[name] > 1 for name in involved)
        is_short = all(len(name) <= LONGEST_NAME and not name.startswith(("[", "{")) for name in involved)
        if is_short and recurring >= 0.6 * len(involved) and len(kept_apart) <= max(len(labels), 3):
            return delimiter
    return None


def _refuse_written_lists(labels: Mapping[str, int], column: str, where: str) -> None:
    written = [label for label in labels if label.startswith("[") and label.endswith("]")]
    if len(written) * 2 > len(labels):
        raise UserError(
            f"{where}: column {column} holds lists as text, such as {written[0]:.40}: write the labels as a;b, or as JSON "
            f"lines or Parquet with real lists"
        )


def _missing(labels: Mapping[str, int]) -> tuple[str | None, str]:
    """Return the label that means none, and why: -1, unless it is a class among -1, 0 and 1, or below zero are others."""
    if "-1" not in labels or number_kind(labels) is None:
        return "-1", ""
    numbers = {float(label) for label in labels}
    share = labels["-1"] / sum(labels.values())
    if (numbers <= {-1.0, 0.0, 1.0} and len(numbers) > 1 and share < 0.8) or min(numbers) < -1:
        return None, f"-1 is a class here, of {labels['-1']:,} documents ({share:.0%}); -1 if it means none"
    return "-1", f"{labels['-1']:,} documents have the label -1, which means none; null if it is a class"
