"""Text arguments of the Python API: any iterable of strings, with messages that name the position of a bad element.

Elements are checked one by one instead of by a conversion to a list: a generator of any length keeps memory bounded, but its
bad element is found only when it is reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ulmfit_dist.errors import UserError


class TextTypeError(UserError, TypeError):
    """Argument that is not a string, or not an iterable of strings."""


class TextValueError(UserError, ValueError):
    """String with half of a surrogate pair."""


def iter_texts(texts: Any, name: str = "texts") -> Iterator[str]:
    """Return an iterator over texts; all are checked first, or one by one if they can be iterated only once.

    Args:
        texts: iterable of strings: a list, tuple, array, Series, column of a `datasets.Dataset`, or an iterator.
        name: name of the argument, for messages.

    Raises:
        TextTypeError: one string, a table, or another object that is not an iterable of strings; an element that is not a
            string, such as None or NaN.
        TextValueError: an element with half of a surrogate pair.
    """
    iterator = iter(_iterable(texts, name))
    if iterator is texts:
        return (check_text(text, f"{name}[{i}]") for i, text in enumerate(iterator))
    for i, text in enumerate(iterator):
        check_text(text, f"{name}[{i}]")
    return iter(texts)


def check_text(text: Any, name: str) -> str:
    """Return a text. Raises TextTypeError or TextValueError, naming the argument."""
    if not isinstance(text, str):
        raise TextTypeError(f"{name} is {_described(text)}: give a string, or leave it out")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"U+{ord(text[error.start]):04X}"
            raise TextValueError(
                f"{name} has {half} at character {error.start}, half of a surrogate pair, which is not a character: decode "
                f'it again from its bytes, or replace it: text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
            ) from None
    return text


def _iterable(texts: Any, name: str) -> Iterable[Any]:
    type_name = type(texts).__name__
    if isinstance(texts, str):
        raise TextTypeError(f"{name} is one string, whose letters would be read as texts: give a list, {name}=[text]")
    if isinstance(texts, Mapping) or hasattr(texts, "columns") or hasattr(texts, "column_names"):
        raise TextTypeError(f'{name} is a {type_name}: give the column of texts, such as {name}=table["text"]')
    if isinstance(texts, (set, frozenset)):
        raise TextTypeError(f"{name} is a {type_name}, which has no order: give a list, {name}=sorted(...)")
    if isinstance(texts, (bytes, bytearray)) or not _is_iterable(texts):
        raise TextTypeError(f"{name} is {_described(texts)}: give a list of strings, {name}=[text]")
    return texts  # type: ignore[no-any-return]


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:  # also for a 0-d array, which has an __iter__
        return False
    return True


def _described(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return "None" if value is None else "NaN"
    shown = repr(value) if isinstance(value, (int, float, bytes)) else ""
    return f"{type(value).__name__} {shown[:40]}".rstrip()
