"""Meaning of labels: one class, several classes, or a number. Pure functions of the labels and their counts.

If two meanings fit, the safer one is chosen, and its reason printed: classes assume no order, so whole numbers that repeat
are classes, unless `--target regression` is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ulmfit_dist.data.profile.columns import number_type
from ulmfit_dist.data.targets import classes_of_label
from ulmfit_dist.errors import UserError

DELIMITERS = (";", "|", ",")
"""Delimiters of several labels in a cell, in the order in which they are tried."""
JOINED = 0.05
"""Minimum fraction of documents with several labels."""
LONGEST_NAME = 40
"""Maximum length of a class name in labels with a delimiter, in characters."""
SURE_CLASSES = 5
"""Maximum number of distinct whole numbers that are always classes: 0 and 1, or one to five stars."""
MOST_NUMBERED = 50
"""Maximum number of distinct whole numbers that may be classes."""
FEWEST_OF_A_CLASS = 5
"""Minimum mean number of documents per class of whole numbers."""
SCALES = ("rating", "ratings", "score", "scores", "grade", "stars", "points", "age", "year", "price")
"""Names of columns whose numbers are quantities."""
RARE = 5
"""Number of documents below which a class is reported as rare."""


@dataclass(frozen=True)
class LabelMeaning:
    """Meaning of the labels of a source.

    Attributes:
        target: `classifier.target`.
        reason: reason for the target, as a phrase.
        delimiter: `data.label_delim`, for multicategory.
        missing: `data.missing_label`: the label that means none; None: no label does.
        missing_reason: reason, if it is not the default.
    """

    target: str
    reason: str
    delimiter: str = ";"
    missing: str | None = "-1"
    missing_reason: str = ""


def read_labels(
    labels: Mapping[str, int], column: str, table: str, target: str | None = None, has_lists: bool = False
) -> LabelMeaning:
    """Return the meaning of labels.

    Args:
        labels: number of documents by label, without empty labels.
        column: name of the label column, for messages.
        table: name of the table, for messages.
        target: `classifier.target` that the user has set; None: choose.
        has_lists: cells hold lists, which are joined by the delimiter.

    Raises:
        UserError: labels that are neither classes nor numbers, or may be either.
    """
    numbers, separator = number_type(labels), _delimiter(labels, sure=True)
    if target == "regression":
        if numbers is None:
            invalid = next(label for label in labels if number_type([label]) is None)
            raise UserError(f"--target regression: {table}: label {invalid!r} in column {column} is not a number")
        return LabelMeaning(target, "set by --target", missing=None, missing_reason="-1 is a number like others")
    if target == "multicategory" or (target is None and has_lists):
        reason = "cells hold lists" if has_lists else "set by --target"
        delimiter = ";" if has_lists else (_delimiter(labels, sure=False) or ";")
        return LabelMeaning("multicategory", reason, delimiter, *_missing(labels))
    if target is None and numbers is None and separator is not None:
        joined = sum(number for label, number in labels.items() if len(classes_of_label(label, separator)) > 1)
        reason = f"{joined:,} of {sum(labels.values()):,} documents have several, separated by {separator!r}"
        return LabelMeaning("multicategory", reason, separator, *_missing(labels))
    if target == "category":
        return LabelMeaning(target, "set by --target", ";", *_missing(labels))
    _check_lists(labels, column, table)
    if numbers == "number":
        return LabelMeaning(
            "regression", "numbers with a fraction", missing=None, missing_reason="-1 is a number like others"
        )
    why = _whole_number_classes(labels, column, table) if numbers == "whole" else _word_classes(labels, column, table)
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


def _whole_number_classes(labels: Mapping[str, int], column: str, table: str) -> str:
    """Return the reason why whole numbers are classes. Raises UserError if they may be a quantity."""
    number, total = len(labels), sum(labels.values())
    if number <= SURE_CLASSES:
        return f"{number} distinct whole numbers: classes (--target regression if they are a quantity)"
    values = sorted(float(label) for label in labels)
    counts_from_zero = values == [float(i) for i in range(number)]
    is_scale = column.lower() in SCALES and not counts_from_zero
    if number > MOST_NUMBERED or total / number < FEWEST_OF_A_CLASS or is_scale:
        raise UserError(
            f"{table}: column {column} has {number:,} distinct whole numbers from {values[0]:g} to {values[-1]:g}: are they "
            f"classes or a quantity? Give --target category or --target regression"
        )
    return f"{number} distinct whole numbers that repeat: classes (--target regression if they are a quantity)"


def _word_classes(labels: Mapping[str, int], column: str, table: str) -> str:
    """Return the reason why words are classes. Raises UserError if they hardly repeat."""
    number, total = len(labels), sum(labels.values())
    if number > total / 2 and number > SURE_CLASSES:
        raise UserError(
            f"{table}: column {column} has {number:,} distinct values in {total:,} rows, too many for classes: give another "
            f"--label COL, or --label none to train only a language model"
        )
    return f"{number:,} distinct words or phrases"


def _delimiter(labels: Mapping[str, int], sure: bool) -> str | None:
    """Return the delimiter of several labels in a cell; None if there is none.

    Args:
        sure: accept a delimiter only if most of the names that it joins occur in several combinations.
    """
    total = sum(labels.values())
    for delimiter in DELIMITERS:
        parts = {label: classes_of_label(label, delimiter) for label in labels}
        joined = {label: names for label, names in parts.items() if len(names) > 1}
        if not joined or (sure and sum(labels[label] for label in joined) < JOINED * total):
            continue
        if not sure:
            return delimiter
        combinations = Counter(name for names in parts.values() for name in set(names))
        joined_names = {name for names in joined.values() for name in names}
        recurring = sum(combinations[name] > 1 for name in joined_names)
        is_short = all(len(name) <= LONGEST_NAME and not name.startswith(("[", "{")) for name in joined_names)
        if is_short and recurring >= 0.6 * len(joined_names) and len(combinations) <= max(len(labels), 3):
            return delimiter
    return None


def _check_lists(labels: Mapping[str, int], column: str, table: str) -> None:
    lists = [label for label in labels if label.startswith("[") and label.endswith("]")]
    if len(lists) * 2 > len(labels):
        raise UserError(
            f"{table}: column {column} holds lists as text, such as {lists[0]:.40}: write the labels as a;b, or use JSON "
            f"lines or Parquet with real lists"
        )


def _missing(labels: Mapping[str, int]) -> tuple[str | None, str]:
    """Return the label that means none, and the reason: -1, unless it is one of -1, 0 and 1, or others are below -1."""
    if "-1" not in labels or number_type(labels) is None:
        return "-1", ""
    numbers = {float(label) for label in labels}
    share = labels["-1"] / sum(labels.values())
    if (numbers <= {-1.0, 0.0, 1.0} and len(numbers) > 1 and share < 0.8) or min(numbers) < -1:
        return None, f"-1 is a class, of {labels['-1']:,} documents ({share:.0%}); set -1 if it means none"
    return "-1", f"{labels['-1']:,} documents have the label -1, which means none; set null if it is a class"
