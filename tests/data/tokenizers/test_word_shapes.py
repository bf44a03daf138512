"""Shapes of words against spaCy."""

import functools
import re
from types import SimpleNamespace

import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st

from ulmfit_dist.data.tokenizers.fast.word_shapes import WordShapes, splits_a_run


def tokenizer(**expressions: str | re.Pattern[str]) -> SimpleNamespace:
    """Attributes of a spaCy tokenizer that `WordShapes` reads."""
    compiled = {name: re.compile(expression) for name, expression in expressions.items()}
    searches = {name: expression.search for name, expression in compiled.items()}
    names = ("prefix_search", "suffix_search", "infix_finditer", "token_match", "url_match")
    return SimpleNamespace(**{**dict.fromkeys(names), "rules": {}, **searches})


def test_english_words_have_the_shapes_of_their_letters():
    words = ["movie!)", "well-made,", "sister's", "don't", "10km", "Ümlaut", "123"]
    assert WordShapes(spacy.blank("en").tokenizer)(words) == [
        "aaaaa!)",
        "aaaa-aaaa,",
        "sasaaa's",
        "don't",
        "10km",
        "Üaaaaa",
        "123",
    ]


@pytest.mark.parametrize(
    ("expressions", "shape"),
    [
        ({"suffix_search": r"ing$"}, "aaaingig"),  # i, n and g are told apart, always
        ({"suffix_search": r"(?<=[0-9])ing$"}, "aaaaaaaa"),  # only behind a digit
        ({"suffix_search": r"[.!]$", "infix_finditer": r"(?<=[a-z])-(?=[a-z])"}, "aaaaaaaa"),
        ({"infix_finditer": r"[^q]-"}, "aaaaaaaa"),
        ({"infix_finditer": r"[^t]-"}, "aaaaaaaa"),  # in words with a hyphen
        ({"infix_finditer": r"[^t]$"}, "aataaaaa"),
        ({"prefix_search": r"^[a-z]"}, "eatingig"),  # a prefix of letters: the rest may be an exception
        ({"token_match": re.compile("x", re.IGNORECASE)}, "eatingig"),
        ({"token_match": r"(a)\1"}, "eatingig"),
    ],
)
def test_letters_that_an_expression_tells_apart_stay(expressions: dict[str, str], shape: str):
    assert WordShapes(tokenizer(**expressions))(["eatingig"]) == [shape]


def test_letters_are_told_apart_in_words_with_what_the_expression_needs():
    shapes = WordShapes(tokenizer(suffix_search=r"(?<=[0-9])(?:km|m)$"))
    assert shapes(["5mikl", "mikl"]) == ["5maka", "aaaa"]


def test_a_token_that_ends_between_letters_is_seen():
    assert splits_a_run("aaab!", [0, 2, 5])
    assert not splits_a_run("aaab!", [0, 4, 5])


@pytest.mark.parametrize("lang", ["en", "de", "es", "it", "ru"])
@settings(max_examples=500, deadline=None)
@given(st.lists(st.text(st.sampled_from("abcgikmsxz's’.,-–!()/:\"0159°²µ@&é"), min_size=1, max_size=9), min_size=1))
def test_a_word_is_split_where_its_shape_is(lang: str, words: list[str]):
    tokenizer, shapes = _language(lang)
    for word, shape in zip(words, shapes(words), strict=True):
        ends = [token.idx + len(token) for token in tokenizer(shape)]
        if not splits_a_run(shape, [0, *ends]):
            assert [token.idx + len(token) for token in tokenizer(word)] == ends, (word, shape)


@functools.cache
def _language(lang: str) -> tuple[spacy.tokenizer.Tokenizer, WordShapes]:
    tokenizer = spacy.blank(lang).tokenizer
    return tokenizer, WordShapes(tokenizer)
