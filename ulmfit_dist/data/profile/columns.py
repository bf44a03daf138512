"""Columns of a table: their content, and the choice of text and label columns.

All functions are pure functions of rows, so each rule is tested without files. A rule decides only if exactly one column
fits. Several candidates are an error, and the user must choose: a wrong label column would train a useless model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ulmfit_dist.data.sources.base import as_flag
from ulmfit_dist.data.sources.split_names import split_of_name
from ulmfit_dist.errors import UserError

TEXT_NAMES = (
    "text texts review reviews body content contents comment sentence message tweet document article description question "
    "utterance abstract post"
).split()
"""Names of text columns, in lower case; `text` has priority."""
LABEL_NAMES = (
    "label labels class classes category categories target sentiment polarity topic topics stars rating score intent "
    "emotion tag tags genre y"
).split()
"""Names of label columns, in lower case; `label` has priority."""
VALID_NAMES = ("is_valid", "is_validation", "valid")
"""Names of boolean columns that mark validation rows, fastai's first."""
FEWEST_WORDS = 2.5
"""Minimum mean number of words of a prose column."""
FEWEST_LETTERS = 5
"""Minimum mean number of characters of a prose column in a script without spaces."""
DIGITS = 0.3
"""Maximum fraction of digits of a prose column; above, it has dates, codes or numbers."""
DISTINCT_TEXTS = 0.2
"""Minimum fraction of distinct values of a prose column; below, it has labels."""
MOST_CLASSES = 1000
"""Maximum number of distinct values of a label column."""
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
"""Characters of scripts with no or few spaces between words: Thai, Lao, Burmese, Khmer, CJK."""
WIDEST = 60
"""Maximum length of an example, in characters."""


@dataclass(frozen=True)
class Column:
    """Statistics of one column over some rows.

    Attributes:
        name: name of the column.
        content: words, whole, number, flag, list, other, or empty.
        type: type in the file, such as `string`; CSV cells are strings.
        example: first value that is not empty, shortened.
        num_values: number of values that are not empty.
        num_missing: number of empty values.
        num_distinct: number of distinct values.
        words, characters: mean numbers per value.
        digits, unspaced: fractions of characters that are digits, and of scripts without spaces.
    """

    name: str
    content: str
    type: str
    example: str
    num_values: int
    num_missing: int
    num_distinct: int
    words: float
    characters: float
    digits: float
    unspaced: float

    @property
    def is_prose(self) -> bool:
        """Return whether the column looks like texts: words, mostly distinct, with few digits."""
        if self.content != "words" or self.digits > DIGITS or self.num_distinct < DISTINCT_TEXTS * self.num_values:
            return False
        return self.words >= FEWEST_WORDS or (self.unspaced > 0.3 and self.characters >= FEWEST_LETTERS)

    @property
    def is_class_like(self) -> bool:
        """Return whether values repeat as labels do."""
        if self.content == "list":
            return True
        most = self.num_values / (3 if self.num_values < 50 else 5)
        few = 2 <= self.num_distinct <= min(max(most, 2), MOST_CLASSES)
        return self.content in ("words", "whole", "flag") and few and self.num_distinct < self.num_values


@dataclass(frozen=True)
class Choice:
    """Choice of the columns to read.

    Attributes:
        text: text columns.
        text_reason: reason, as a phrase.
        label: label column; None: no labels.
        label_reason: reason, as a phrase.
        valid_col: boolean column that marks validation rows.
        file_col: column of file names, in place of `text`.
        notices: further messages.
    """

    text: list[str]
    text_reason: str
    label: str | None
    label_reason: str
    valid_col: str | None = None
    file_col: str | None = None
    notices: tuple[str, ...] = ()


def profile_column(name: str, values: Sequence[Any], type_name: str = "string") -> Column:
    """Return the statistics of a column's values."""
    present = [value for value in values if not _is_missing(value)]
    texts = [str(value) for value in present]
    letters = "".join(texts[:2000])
    total = max(len(texts), 1)
    return Column(
        name=name,
        content=_content(present),
        type=type_name,
        example=shortened(texts[0]) if texts else "",
        num_values=len(present),
        num_missing=len(values) - len(present),
        num_distinct=len(set(texts)),
        words=sum(len(text.split()) for text in texts) / total,
        characters=sum(map(len, texts)) / total,
        digits=sum(map(str.isdigit, letters)) / max(len(letters), 1),
        unspaced=len(UNSPACED.findall(letters)) / max(len(letters), 1),
    )


def choose_columns(
    columns: Sequence[Column],
    rows: Sequence[dict[str, Any]],
    table: str,
    text: Sequence[str] = (),
    label: str | None = None,
    file_columns: Collection[str] = (),
) -> Choice:
    """Return the columns to read.

    Args:
        columns: statistics of all columns.
        rows: rows of these statistics.
        table: name of the table, for messages.
        text, label: columns that the user has set; empty and None: choose; a label of `none`: no labels.
        file_columns: columns whose values are names of existing files.

    Raises:
        UserError: no such column; several candidates, or none.
    """
    names = [column.name for column in columns]
    for option, given in [*(("--text", name) for name in text), ("--label", label)]:
        if given is not None and given not in names and not (option == "--label" and given == "none"):
            raise UserError(f"{option} {given}: {table} has no such column; its columns are: {', '.join(names)}")
    valid_col = next((c.name for c in columns if _is_valid_column(c, rows) and c.name not in (*text, label)), None)
    notices = [_split_notice(c.name) for c in columns if c.name not in (*text, label) and _names_splits(c, rows)]
    used = {valid_col, *(c.name for c in columns if _names_splits(c, rows))}
    file_col = None
    if not text and len(file_columns) == 1 and not any(c.is_prose and c.name not in file_columns for c in columns):
        (file_col,) = file_columns
        chosen, text_reason = [file_col], "its values are names of text files beside the table"
    elif text:
        chosen, text_reason = list(text), "set by --text"
    else:
        chosen, text_reason = _choose_text([c for c in columns if c.name != label], table)
    used |= set(chosen)
    if label == "none":
        return Choice(chosen, text_reason, None, "set by --label none", valid_col, file_col, tuple(notices))
    if label is not None:
        return Choice(chosen, text_reason, label, "set by --label", valid_col, file_col, tuple(notices))
    name, reason = _choose_label([c for c in columns if c.name not in used], rows, table)
    return Choice(chosen, text_reason, name, reason, valid_col, file_col, tuple(notices))


def looks_headless(header: Sequence[str], rows: Sequence[dict[str, Any]]) -> str | None:
    """Return the reason why a header looks like a row of values, as a phrase; None if it looks like column names."""
    for name in header:
        if re.fullmatch(r"[+-]?\d+([.,]\d+)?", name):
            return f"{name!r} is a number"
        if len(name) > WIDEST or len(name.split()) > 6 or len(UNSPACED.findall(name)) > 15:
            return f"{shortened(name, 30)!r} is a text"
    for name in header:
        if name and sum(row.get(name) == name for row in rows) > 1:
            return f"{name!r} is a value of the rows below it"
    return None


def shortened(text: str, width: int = WIDEST) -> str:
    """Return a text on one line, without control characters, cut to `width` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * width]).split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def _choose_text(columns: Sequence[Column], table: str) -> tuple[list[str], str]:
    prose = [column for column in columns if column.is_prose]
    if not prose:
        shown = ", ".join(column.name for column in columns)
        raise UserError(f"{table}: no column looks like text (columns: {shown}): give --text COL")
    if len(prose) == 1:
        return [prose[0].name], f"the only column of prose, {_size(prose[0])}"
    known = [column for name in TEXT_NAMES for column in prose if column.name.lower() == name]
    if known and (known[0].name.lower() == "text" or len(known) == 1):
        others = ", ".join(column.name for column in prose if column is not known[0])
        return [known[0].name], f"its name, {_size(known[0])}; {others} could be added"
    a, b = prose[0].name, prose[1].name
    named = f"columns {', '.join(c.name for c in prose[:-1])} and {prose[-1].name}"
    both = "both" if len(prose) == 2 else "several"
    raise UserError(f"{table}: {named} look like texts: give --text {a}, --text {b} or {both} (--text {a} --text {b})")


def _choose_label(columns: Sequence[Column], rows: Sequence[dict[str, Any]], table: str) -> tuple[str | None, str]:
    present = [column for column in columns if column.content != "empty"]
    if not present:
        return None, "no other column: only a language model"
    likely = [c for c in present if c.is_class_like or (c.name.lower() in LABEL_NAMES and not c.is_prose)]
    candidates = _without_codes(likely, rows)
    if len(candidates) == 1:
        return candidates[0].name, _label_reason(candidates[0], len(likely) > 1)
    named = [column for name in LABEL_NAMES for column in candidates if column.name.lower() == name]
    if named and (len(named) == 1 or named[0].name.lower() in ("label", "labels")):
        return named[0].name, f"its name; {named[0].num_distinct:,} distinct values"
    if not candidates and len(present) == 1 and present[0].content == "number":
        return present[0].name, "the only other column, of numbers"
    shown = ", ".join(column.name for column in (candidates or columns))
    hint = f"candidates: {shown}" if candidates else f"no other column has values that repeat as labels do: {shown}"
    raise UserError(
        f"{table}: which column is the label? ({hint}): give --label COL, or --label none to train only a language model"
    )


def _label_reason(column: Column, is_named: bool) -> str:
    if is_named:
        return f"the names of another column's numbers; {column.num_distinct:,} distinct values"
    if column.content == "list":
        return "the only column of lists"
    if not column.is_class_like:
        return "its name"
    return f"the only column whose values repeat: {column.num_distinct:,} distinct in {column.num_values:,} rows"


def _without_codes(columns: Sequence[Column], rows: Sequence[dict[str, Any]]) -> list[Column]:
    """Return the columns without those of numbers that map one-to-one to the words of another column."""
    words = [column for column in columns if column.content == "words"]

    def is_code(column: Column) -> bool:
        return column.content == "whole" and any(_is_one_to_one(rows, column.name, other.name) for other in words)

    return [column for column in columns if not is_code(column)]


def _is_one_to_one(rows: Sequence[dict[str, Any]], a: str, b: str) -> bool:
    pairs = {(str(row.get(a)), str(row.get(b))) for row in rows}
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def _is_valid_column(column: Column, rows: Sequence[dict[str, Any]]) -> bool:
    is_named = column.name.lower() in VALID_NAMES and not column.num_missing
    return is_named and all(as_flag(row.get(column.name)) is not None for row in rows)


def _names_splits(column: Column, rows: Sequence[dict[str, Any]]) -> bool:
    """Return whether a column names the split of each row."""
    if column.content != "words" or column.num_distinct > 6 or column.num_missing:
        return False
    names = {str(row.get(column.name)) for row in rows}
    return len(names) > 0 and all(split_of_name(name) for name in names)


def _split_notice(name: str) -> str:
    return (
        f"column {name} names the split of each row, which is not used: write one file per split, train.csv and test.csv in "
        f"one folder, or set data.splitter=module.function"
    )


def _size(column: Column) -> str:
    if column.unspaced > 0.3:
        return f"{column.characters:.0f} characters on average"
    return f"{column.words:.0f} words on average"


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def _content(values: Sequence[Any]) -> str:
    if not values:
        return "empty"
    if all(isinstance(value, bool) for value in values):
        return "flag"
    if all(isinstance(value, (list, tuple)) or hasattr(value, "tolist") for value in values):
        return "list"
    if not all(isinstance(value, (str, int, float)) for value in values):
        return "other"
    return number_type(map(str, values)) or "words"


def number_type(values: Iterable[str]) -> str | None:
    """Return `whole` if all values are whole numbers, `number` if all are numbers, else None."""
    result = "whole"
    for value in values:
        try:
            number = float(value)
        except ValueError:
            return None
        if not math.isfinite(number):
            return None
        if not number.is_integer():
            result = "number"
    return result
