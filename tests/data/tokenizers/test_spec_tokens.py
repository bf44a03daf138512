"""Tokens as a text that people read."""

import pytest
from fastai.text.learner import decode_spec_tokens

from ulmfit_dist.data.tokenizers.spec_tokens import MOST_REPETITIONS, readable


@pytest.mark.parametrize("text", ["xxbos xxmaj hello xxup nasa , xxmaj o'brien said", "xxmaj a xxrep 3 !", "a b xxpad"])
def test_capitals_are_fastais(text: str):
    tokens = text.split()
    expected = " ".join(token for token in decode_spec_tokens(tokens) if token not in ("xxbos", "xxpad"))
    assert readable(tokens, "word") == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2 xxrep 3 0 were meant", "2 000 were meant"),
        ("no xxwrep 3 no xxmaj yes", "no no no no Yes"),
        ("xxrep many a b", "a b"),
        ("xxrep 999999999 a", "a" * MOST_REPETITIONS),
        ("the end xxmaj", "the end "),
        ("", ""),
    ],
)
def test_a_repetition_is_of_one_token(text: str, shown: str):
    assert readable(text.split(), "word") == shown


def test_pieces_become_words():
    assert readable("xxbos xxmaj ▁he llo ▁wor ld".split(), "sentencepiece") == "Hello world"
