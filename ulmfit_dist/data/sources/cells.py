"""Texts and labels from the cells of a table, and what is neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ulmfit_dist.data.sources.base import BadRow, ReadOptions, Row
from ulmfit_dist.data.sources.line_stream import UNREADABLE

FLD = "xxfld"
NO_TEXT = (list, tuple, Mapping, bytes, bytearray, set)
"""Types of cells that hold no text."""
TYPE_NAMES = {"dict": "an object", "list": "a list", "tuple": "a list", "bytes": "bytes", "bytearray": "bytes"}


class BadCell(Exception):  # noqa: N818  a phrase, of which the caller makes the error
    """A cell that is no text or no label. The message begins where the row's number ends."""


def text_of_cell(value: Any, column: str, on_error: str) -> str:
    """Return the text of a cell, without a byte-order mark; an empty one for a missing value.

    Raises:
        BadCell: a list, an object, bytes; characters that no text has, unless `on_error` replaces them.
    """
    if isinstance(value, NO_TEXT):
        raise BadCell(f": column {column!r} holds {_type_name(value)}, which is no text")
    text = "" if value is None or value != value else str(value)
    return clean_text(text, on_error, f": column {column!r}")


def check_cells(row: Row, options: ReadOptions, where: str) -> Row | BadRow:
    """Return a row whose cells hold texts and labels, else why they do not."""
    try:
        for column in options.text:
            text_of_cell(row[column], column, options.on_error)
        if options.label is not None:
            label_name(row.get(options.label), ";", None, column=options.label)
    except BadCell as error:
        return BadRow(f"{where}{error}")
    return row


def clean_text(text: str, on_error: str, where: str) -> str:
    """Return a text without the byte-order mark that it begins with.

    Raises:
        BadCell: it has NUL characters, or halves of surrogate pairs, and `on_error` is not replace.
    """
    text = text.removeprefix("\ufeff")
    has_nul, has_half = "\0" in text, not text.isascii() and _has_half_pair(text)
    if not has_nul and not has_half and not (on_error == "skip" and UNREADABLE in text):
        return text
    if on_error == "replace":
        return text.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if has_half:
        raise BadCell(f"{where} has half of a surrogate pair, which is no character")
    if has_nul:
        raise BadCell(f"{where} has NUL characters")
    raise BadCell(f"{where} has bytes that cannot be decoded")


def label_name(
    value: Any, delimiter: str, missing_label: str | None, names: Sequence[str] | None = None, column: str = "label"
) -> str | None:
    """Return a label as it is stored, without spaces around it; None for no label: empty, NaN or what means none.

    An empty list is a label: of no class.

    Args:
        delimiter: what joins a list of labels (`data.label_delim`).
        missing_label: the label that means none (`data.missing_label`).
        names: of the classes, where values are their numbers; then -1 means none.
        column: what messages call it.

    Raises:
        BadCell: an object, bytes, or a list of lists.
    """
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        value = value.tolist()  # numpy's
    if isinstance(value, (list, tuple)):
        if any(isinstance(part, NO_TEXT) for part in value):
            raise BadCell(f": column {column!r} holds a list of lists or objects, which is no label")
        return delimiter.join(_name(part, names) for part in value if part is not None) or delimiter
    if isinstance(value, NO_TEXT):
        raise BadCell(f": column {column!r} holds {_type_name(value)}, which is no label")
    if value is None or value != value:  # NaN
        return None
    if names is not None and not isinstance(value, str):
        return None if value == -1 else _name(value, names)
    name = clean_text(_name(value, None), "strict", f": column {column!r}")
    return None if name in ("", missing_label) else name


def join_fields(texts: Sequence[str]) -> str:
    """Return the texts of several columns as one, each marked by xxfld and its number, as fastai's `mark_fields` does."""
    if len(texts) == 1:
        return texts[0]
    return " ".join(f"{FLD} {i} {text}" for i, text in enumerate(texts, 1))


def _name(value: Any, names: Sequence[str] | None) -> str:
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            raise BadCell(f": the label {value} is none of the {len(names)} classes")
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
