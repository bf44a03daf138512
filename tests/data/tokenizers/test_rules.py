"""fastai's special tokens and text rules against fastai itself."""

from collections import Counter

import pytest
from fastai.text import core
from fastai.text.data import make_vocab
from hypothesis import given, settings
from hypothesis import strategies as st
from test_word_tokens import EXAMPLES, PIECES, TEXTS, rich_texts

from ulmfit_dist.data.tokenizers import rules
from ulmfit_dist.data.tokenizers.rules import SPECIAL_TOKENS, TEXT_RULES, compose, replace_space
from ulmfit_dist.data.vocab import build_vocab

NAMES = [rule.__name__ for rule in (*TEXT_RULES, replace_space)]
WORDS = ["No", "no", "NO", "no.", "aaa", "É", "éé", "ǅ", "ß", "_", "1", "/", "\n", "\x1c", "\u2028", "xxrep", "İ"]
repetitive = st.lists(st.sampled_from([*WORDS, " ", "  "]), max_size=24).map("".join)
spaced = st.lists(st.sampled_from(WORDS), max_size=16).map(" ".join)
any_text = st.one_of(rich_texts, repetitive, spaced, st.text(), st.text(st.sampled_from("aA b#/.\\\n…▁")))


def test_special_tokens_are_fastais():
    assert list(SPECIAL_TOKENS) == core.defaults.text_spec_tok
    for name in ("UNK", "PAD", "BOS", "EOS", "FLD", "TK_REP", "TK_WREP", "TK_UP", "TK_MAJ"):
        assert getattr(rules, name) == getattr(core, name)


def test_the_rules_are_fastais_in_fastais_order():
    assert [rule.__name__ for rule in TEXT_RULES] == [rule.__name__ for rule in core.defaults.text_proc_rules]
    assert [replace_space.__name__] == [rule.__name__ for rule in core.defaults.text_postproc_rules]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("texts", [TEXTS, PIECES, ["".join(PIECES), " ".join(PIECES), "".join(map(chr, range(0x3100)))]])
def test_a_rule_changes_texts_as_fastais_does(name: str, texts: list[str]):
    ours, fastais = getattr(rules, name), getattr(core, name)
    assert [ours(text) for text in texts] == [fastais(text) for text in texts]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=EXAMPLES * 5, deadline=None)
@given(text=any_text)
def test_a_rule_changes_any_text_as_fastais_does(name: str, text: str):
    assert getattr(rules, name)(text) == getattr(core, name)(text)


@settings(max_examples=EXAMPLES * 5, deadline=None)
@given(text=any_text)
def test_all_rules_change_any_text_as_fastais_do(text: str):
    expected = text
    for rule in core.defaults.text_proc_rules:
        expected = rule(expected)
    assert compose(*TEXT_RULES)(text) == expected


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.dictionaries(st.one_of(st.sampled_from([*SPECIAL_TOKENS, "xxfake"]), st.text("abc", max_size=3)), st.integers(1, 9)),
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_a_vocabulary_is_fastais(counts: dict[str, int], min_freq: int, max_vocab: int):
    expected = make_vocab(Counter(counts), min_freq=min_freq, max_vocab=max_vocab)
    assert build_vocab(Counter(counts), min_freq, max_vocab) == expected
