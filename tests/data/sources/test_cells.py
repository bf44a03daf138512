"""Cells of a table as texts and labels, one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ulmfit_dist.data.sources.base import BadRow, ReadOptions
from ulmfit_dist.data.sources.cells import BadCell, check_cells, clean_text, join_fields, label_name, text_of_cell
from ulmfit_dist.data.sources.line_stream import UNREADABLE


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (" a ", " a "), ("\ufeffa\ufeff", "a\ufeff"), (None, ""), (float("nan"), ""), (1.5, "1.5"), (0, "0")],
)
def test_a_cell_is_its_text(value: Any, text: str):
    assert text_of_cell(value, "text", "strict") == text


@pytest.mark.parametrize(
    ("value", "name"),
    [(["a"], "a list"), (("a",), "a list"), ({}, "an object"), (b"a", "bytes"), (bytearray(b"a"), "bytes"), ({1}, "a set")],
)
def test_what_is_no_text_is_named(value: Any, name: str):
    with pytest.raises(BadCell, match=f"^: column 'body' holds {name}, which is not text$"):
        text_of_cell(value, "body", "strict")


@pytest.mark.parametrize(
    ("text", "on_error", "expected"),
    [
        ("a\0b", "strict", "has NUL characters"),
        ("a\0b", "skip", "has NUL characters"),
        ("a\0b", "replace", "a\ufffdb"),
        ("a\ud800b", "strict", "has half of a surrogate pair"),
        ("a\ud800b", "skip", "has half of a surrogate pair"),
        ("\ufeffa\ud800b\0", "replace", "a\ufffdb\ufffd"),
        (f"a{UNREADABLE}", "skip", "has bytes that cannot be decoded"),
        (f"a{UNREADABLE}", "strict", f"a{UNREADABLE}"),
        ("grün 😀", "strict", "grün 😀"),
    ],
)
def test_characters_that_are_none_are_refused_or_replaced(text: str, on_error: str, expected: str):
    if expected.startswith("has "):
        with pytest.raises(BadCell, match=f"^row 3 {expected}"):
            clean_text(text, on_error, "row 3")
    else:
        assert clean_text(text, on_error, "row 3") == expected


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("a", "a"),
        (" \ufeffa\t", "a"),
        ("\ufeff a ", "a"),
        ("", None),
        ("  ", None),
        ("none", None),
        (" none ", None),
        (None, None),
        (float("nan"), None),
        (np.float32("nan"), None),
        (2.0, "2"),
        (2.5, "2.5"),
        (7, "7"),
        (True, "True"),
        (np.int64(3), "3"),
        (["b", None, " a "], "b;a"),
        (np.array([1, 2]), "1;2"),
        ([1.0, 2.5], "1;2.5"),
        ([], ";"),
        ([None], ";"),
    ],
)
def test_a_label_is_a_stripped_text(value: Any, name: str | None):
    assert label_name(value, ";", "none") == name


def test_values_may_be_indices_of_classes():
    names = ["neg", "pos"]
    assert [label_name(value, ";", None, names) for value in (0, 1, -1, np.int64(1), "2")] == [
        "neg",
        "pos",
        None,
        "pos",
        "2",
    ]
    assert label_name([1, 0], "|", None, names) == "pos|neg"
    assert label_name("", ";", None) is None
    for value in (2, -2, [0, 2]):
        with pytest.raises(BadCell, match=r"^: label -?2 is out of range for 2 classes$"):
            label_name(value, ";", None, names)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([["a"]], "a list of lists or objects, which is not a label"),
        (["a", {}], "a list of lists or objects"),
        ({"a": 1}, "an object, which is not a label"),
        (b"a", "bytes, which is not a label"),
    ],
)
def test_what_is_no_label_is_named_with_its_column(value: Any, reason: str):
    with pytest.raises(BadCell, match=f"^: column 'stars' holds {reason}"):
        label_name(value, ";", None, column="stars")
    with pytest.raises(BadCell, match=r"^: column 'label' holds"):
        label_name(value, ";", None)


def test_a_label_has_no_nul_whatever_data_on_error_is():
    with pytest.raises(BadCell, match=r"^: column 'stars' has NUL characters"):
        label_name("a\0", ";", None, column="stars")


def test_a_row_is_checked_in_the_columns_that_are_read():
    options = ReadOptions("json", text=("title", "text"), label="stars")
    good = {"title": "a", "text": "b", "stars": "c", "other": ["not read"]}
    assert check_cells(good, options, "line 3") is good
    assert check_cells({"title": "a", "text": "b"}, options, "line 3") == {"title": "a", "text": "b"}
    for change, reason in (
        ({"title": ["x"]}, "line 3: column 'title' holds a list, which is not text"),
        ({"text": "a\0"}, "line 3: column 'text' has NUL characters"),
        ({"stars": {}}, "line 3: column 'stars' holds an object, which is not a label"),
    ):
        assert check_cells({**good, **change}, options, "line 3") == BadRow(reason)
    replacing = ReadOptions("json", on_error="replace", text=("text",))
    assert check_cells({"text": "a\0", "label": {}}, replacing, "line 3") == {"text": "a\0", "label": {}}


def test_fields_are_numbered_from_one_unless_there_is_only_one():
    assert join_fields(["a"]) == "a"
    assert join_fields(["a", "b c"]) == "xxfld 1 a xxfld 2 b c"
