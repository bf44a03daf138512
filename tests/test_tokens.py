"""Tokens and vocabulary against fastai's own."""

from collections import Counter

import pytest
from fastai.text.core import parallel_tokenize
from fastai.text.data import make_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from ulmfit_dist.data.tokenizer import Tokenizer
from ulmfit_dist.data.vocab import UNK_ID, LocalVocab, add_counts, build_vocab, id_map, token_ids
from ulmfit_dist.errors import UserError

TEXTS = [
    "",
    "   ",
    "I really LIKED that movie!!!!! It's soooo good... 10/10",
    "Line one\n\n  line two\twith tab<br />and &amp; entity &quot;quoted&quot;",
    "no no no no never, U.S.A. e-mail me: a.b@c.org http://x.y/z?q=1#f",
    "xxbos typed by the author xxmaj xxrep 4 a",
    "\U0001f44d\U0001f3fd emoji, \u0645\u0631\u062d\u0628\u0627, \u4f60\u597d, e\u0301 combining, \x00 control",
]
_english = Tokenizer("en")


def fastai_tokens(texts: list[str]) -> list[list[str]]:
    return [list(tokens) for _, tokens in sorted(parallel_tokenize(texts, n_workers=0), key=lambda pair: pair[0])]


def test_tokens_are_fastais():
    assert _english.tokenize(TEXTS) == fastai_tokens(TEXTS)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=4))
def test_tokens_are_fastais_on_any_text(texts: list[str]):
    assert _english.tokenize(texts) == fastai_tokens(texts)


def test_an_unknown_language_is_named():
    with pytest.raises(UserError, match=r"tokenizer\.lang='klingon'"):
        Tokenizer("klingon")


def test_merged_counts_make_fastais_vocabulary():
    documents = _english.tokenize(TEXTS * 2 + ["b b b a a a c c c d"])
    merged: Counter[str] = Counter()
    for start in (0, 5, 9):
        local = LocalVocab()
        for document in documents[start : {0: 5, 5: 9, 9: None}[start]]:
            local.encode(document)
        add_counts(merged, list(local.ids), local.counts)
    counts = Counter(token for document in documents for token in document)
    vocab = build_vocab(merged, min_freq=2, max_vocab=40)
    assert vocab == make_vocab(counts, min_freq=2, max_vocab=40)
    assert len(vocab) % 8 == 0


def test_local_ids_map_to_the_vocabulary():
    vocab = ["xxunk", "xxpad", "b", "a", "xxfake", "xxfake"]
    assert id_map(["a", "never seen", "b", "xxfake"], vocab).tolist() == [3, UNK_ID, 2, UNK_ID]
    assert token_ids(vocab) == {"xxunk": 0, "xxpad": 1, "b": 2, "a": 3}
