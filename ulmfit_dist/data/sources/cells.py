"""Cells of a table as texts and labels.

A cell that is neither raises `BadCell` instead of being converted by `str`: a list printed as text would train silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ulmfit_dist.data.sources.base import BadRow, ReadOptions, Row
from ulmfit_dist.data.sources.line_stream import UNREADABLE

FLD = "xxfld"
"""Token before each text column, as in fastai's `mark_fields`."""
NOT_TEXT = (list, tuple, Mapping, bytes, bytearray, set)
"""Types of cells that are not text."""
TYPE_NAMES = {"dict": "an object", "list": "a list", "tuple": "a list", "bytes": "bytes", "bytearray": "bytes"}
"""Names of types in messages."""


class BadCell(Exception):  # noqa: N818  a phrase that the caller completes to an error
    """Cell that is not a text, or not a label. The message follows the position of the row."""


def text_of_cell(value: Any, column: str, on_error: str) -> str:
    """Return the text of a cell, without a byte-order mark; an empty text for a missing value.

    Raises:
        BadCell: a list, an object or bytes; invalid characters, unless `on_error` replaces them.
    """
    if isinstance(value, NOT_TEXT):
        raise BadCell(f": column {column!r} holds {_type_name(value)}, which is not text")
    text = "" if value is None or value != value else str(value)
    return clean_text(text, on_error, f": column {column!r}")


def check_cells(row: Row, options: ReadOptions, position: str) -> Row | BadRow:
    """Return the row if its cells are texts and labels, else a `BadRow` at this position, such as `line 3`."""
    try:
        for column in options.text:
            text_of_cell(row[column], column, options.on_error)
        if options.label is not None:
            label_name(row.get(options.label), ";", None, column=options.label)
    except BadCell as error:
        return BadRow(f"{position}{error}")
    return row


def clean_text(text: str, on_error: str, position: str) -> str:
    """Return a text without a leading byte-order mark.

    Raises:
        BadCell: the text has NUL characters or halves of surrogate pairs, and `on_error` is not replace.
    """
    text = text.removeprefix("\ufeff")
    has_nul, has_half = "\0" in text, not text.isascii() and _has_half_pair(text)
    if not has_nul and not has_half and not (on_error == "skip" and UNREADABLE in text):
        return text
    if on_error == "replace":
        return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if has_half:
        raise BadCell(f"{position} has half of a surrogate pair, which is not a character")
    if has_nul:
        raise BadCell(f"{position} has NUL characters")
    raise BadCell(f"{position} has bytes that cannot be decoded")


def label_name(
    value: Any, delimiter: str, missing_label: str | None, names: Sequence[str] | None = None, column: str = "label"
) -> str | None:
    """Return a label as it is stored, stripped; None for an empty cell, NaN or the missing label.

    An empty list is a label with no class.

    Args:
        delimiter: separator that joins a list of labels (`data.label_delim`).
        missing_label: label that means none (`data.missing_label`).
        names: class names, if values are class indices; then -1 means none.
        column: name of the column, for messages.

    Raises:
        BadCell: an object, bytes, a list of lists, or an index without a class.
    """
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        value = value.tolist()  # numpy
    if isinstance(value, (list, tuple)):
        if any(isinstance(part, NOT_TEXT) for part in value):
            raise BadCell(f": column {column!r} holds a list of lists or objects, which is not a label")
        return delimiter.join(_name(part, names) for part in value if part is not None) or delimiter
    if isinstance(value, NOT_TEXT):
        raise BadCell(f": column {column!r} holds {_type_name(value)}, which is not a label")
    if value is None or value != value:  # NaN
        return None
    if names is not None and not isinstance(value, str):
        return None if value == -1 else _name(value, names)
    name = clean_text(_name(value, None), "strict", f": column {column!r}")
    return None if name in ("", missing_label) else name


def join_fields(texts: Sequence[str]) -> str:
    """Return the texts of several columns as one, each preceded by xxfld and its number, as fastai's `mark_fields` does."""
    if len(texts) == 1:
        return texts[0]
    return " ".join(f"{FLD} {i} {text}" for i, text in enumerate(texts, 1))


def _name(value: Any, names: Sequence[str] | None) -> str:
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            raise BadCell(f": label {value} is out of range for {len(names)} classes")
        return str(names[value])
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).removeprefix("\ufeff").strip()


def _has_half_pair(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _type_name(value: Any) -> str:
    return TYPE_NAMES.get(type(value).__name__, f"a {type(value).__name__}")
