"""Texts that a caller hands over: any iterable of strings, checked by position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ulmfit_dist.errors import UserError


class TextTypeError(UserError, TypeError):
    """Something else than texts."""


class TextValueError(UserError, ValueError):
    """A string that is no text."""


def iter_texts(texts: Any, name: str = "texts") -> Iterator[str]:
    """Iterate over texts that are checked: all before the first one, or one by one if they can be read only once.

    Args:
        texts: a list, tuple, array, Series, column of a `datasets.Dataset`, an iterator: anything that yields strings.
        name: what messages call it.

    Raises:
        TextTypeError: one string, a table, or another object that is not an iterable of strings; an element that is not a
            string, such as None or NaN.
        TextValueError: an element that holds half of a surrogate pair.
    """
    iterator = iter(_iterable(texts, name))
    if iterator is texts:
        return (check_text(text, f"{name}[{i}]") for i, text in enumerate(iterator))
    for i, text in enumerate(iterator):
        check_text(text, f"{name}[{i}]")
    return iter(texts)


def check_text(text: Any, name: str) -> str:
    """Return the text. Raises TextTypeError or TextValueError, with the name in the message, for what is none."""
    if not isinstance(text, str):
        raise TextTypeError(f"{name} is {_described(text)}: give a string, or leave it out")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}"
            raise TextValueError(
                f"{name} holds {half} at character {error.start}, half of a surrogate pair, which is no character: decode "
                f'it again from its bytes, or replace it: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
            ) from None
    return text


def _iterable(texts: Any, name: str) -> Iterable[Any]:
    kind = type(texts).__name__
    if isinstance(texts, str):
        raise TextTypeError(f"{name} is one string, whose letters would be read as texts: give a list, {name}=[text]")
    if isinstance(texts, Mapping) or hasattr(texts, "columns") or hasattr(texts, "column_names"):
        raise TextTypeError(f'{name} is a {kind}: give the column of texts alone, such as {name}=table["text"]')
    if isinstance(texts, (set, frozenset)):
        raise TextTypeError(f"{name} is a {kind}, which has no order: give a list, {name}=sorted(...)")
    if isinstance(texts, (bytes, bytearray)) or not _is_iterable(texts):
        raise TextTypeError(f"{name} is {_described(texts)}: give a list of strings, {name}=[text]")
    return texts  # type: ignore[no-any-return]


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:  # also an array of no dimension, which has an __iter__
        return False
    return True


def _described(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "None" if value is None else "NaN"
    kind = type(value).__name__
    shown = repr(value) if isinstance(value, (int, float, bytes)) else ""
    return f"{kind} {shown[:40]}".rstrip()
