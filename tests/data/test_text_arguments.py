"""Texts that a caller passes: accepted types, and errors with positions."""

from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ulmfit_dist.data.text_arguments import iter_texts
from ulmfit_dist.errors import UserError

TEXTS = ["a text", "été \U0001f600"]
TABLE = pd.DataFrame({"text": TEXTS})
DATASET = datasets.Dataset.from_pandas(TABLE)


@pytest.mark.parametrize(
    "texts",
    [
        TEXTS,
        tuple(TEXTS),
        dict.fromkeys(TEXTS).keys(),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        TABLE["text"],
        pd.Series(TEXTS, index=[7, 7]),
        pd.Series(TEXTS, dtype="string"),
        pd.Series(TEXTS, dtype="category"),
        DATASET["text"],
        datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in TEXTS))["text"]
        if hasattr(datasets, "IterableColumn")
        else TEXTS,
        iter(TEXTS),
        (text for text in TEXTS),
    ],
    ids=lambda texts: type(texts).__name__,
)
def test_iterables_of_strings_are_texts(texts: Any):
    assert list(iter_texts(texts)) == TEXTS


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", r"texts is one string, .*: give a list, texts=\[text\]"),
        (np.str_("one text"), r"texts is one string, .*texts=\[text\]"),
        (TABLE, r'texts is a DataFrame: give the column .*texts=table\["text"\]'),
        (DATASET, "texts is a Dataset: give the column"),
        (datasets.DatasetDict({"train": DATASET}), "texts is a DatasetDict: give the column"),
        (pa.table({"text": TEXTS}), "texts is a Table: give the column"),
        ({"text": TEXTS}, "texts is a dict: give the column"),
        (set(TEXTS), "texts is a set, which has no order"),
        (b"one text", "texts is bytes b'one text': give a list"),
        (None, "texts is None: give a list"),
        (float("nan"), "texts is NaN: give a list"),
        (3, "texts is int 3: give a list"),
        (np.array("one text"), "texts is ndarray: give a list"),
        (["a", None], r"texts\[1\] is None: give a string"),
        (["a", float("nan")], r"texts\[1\] is NaN: give a string"),
        (pd.Series(["a", None], index=[8, 9]), r"texts\[1\] is (None|NaN): give a string"),
        (np.array([["a"]]), r"texts\[0\] is ndarray"),
        (["a", "b", ["c"]], r"texts\[2\] is list"),
        (["a", 5], r"texts\[1\] is int 5"),
        ([b"a"], r"texts\[0\] is bytes b'a'"),
    ],
)
def test_other_types_are_a_type_error_of_one_line(texts: Any, message: str):
    with pytest.raises(TypeError, match=f"^{message}[^\n]*$") as caught:
        iter_texts(texts)
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize(("text", "position"), [("\ud83d", 0), ("ab\udcff", 2), ("\ude00\ud83d", 0)])
def test_a_lone_surrogate_is_a_value_error_that_names_its_position(text: str, position: int):
    with pytest.raises(ValueError, match=rf"^texts\[1\] has U\+D[^\n]* at character {position}, [^\n]*$") as caught:
        iter_texts(["a", text])
    assert isinstance(caught.value, UserError)
    str(caught.value).encode()


def test_an_iterator_is_checked_as_it_is_read():
    texts = iter_texts(iter(["a", None]))
    assert next(texts) == "a"
    with pytest.raises(TypeError, match=r"texts\[1\] is None"):
        next(texts)
