"""Tokens and vocabulary against fastai's own."""

import functools
import os
from collections import Counter
from pathlib import Path

import pytest
from fastai.text.core import TokenizeWithRules, WordTokenizer
from fastai.text.data import make_vocab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data import vocab_merge
from ulmfit_dist.data.tokenizers import word as tokenizer_module
from ulmfit_dist.data.tokenizers.registry import open_tokenizer
from ulmfit_dist.data.tokenizers.word import Tokenizer
from ulmfit_dist.data.vocab import (
    UNK_ID,
    build_vocab,
    id_map,
    known_tokens,
    localize,
    token_counts,
    token_ids,
)
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
_fastais: dict[str, TokenizeWithRules] = {}


def fastai_tokens(texts: list[str], lang: str = "en") -> list[list[str]]:
    """Return fastai's tokens; one text per call, because `parallel_tokenize` would change their order."""
    if lang not in _fastais:
        _fastais[lang] = TokenizeWithRules(WordTokenizer(lang))
    return [list(tokens) for tokens in _fastais[lang](texts)]


def test_tokens_are_fastais():
    assert _english.tokenize(TEXTS) == fastai_tokens(TEXTS)


PIECES = [
    *" \t\n\r\x0b\x0c\x1c\x85\xa0\u2003\u3000\u200b\ufeff\x00\x07",
    *"aAbBiIzZ019.,;:!?'\"()[]{}<>&@#/\\-_=+*%$^~|`\u2581\u2026\u2019\u201c\u20ac",
    *"\u0130\u03a3\u03c3\u00df\u01c5\ufb00\u0301\u4f60\u597d\u0645\u0631\u0928\u0e01\U0001f44d\U0001f3fd\u200d",
    *(":) :-( :)) 8) (: <3 ;) :'( xD ^_^ -_- o.O ... -- ---- !!! '' \"\" 's 'S n't 'll").split(),
    *("/// //// ### \\\\\\ http:///x a///b ///\n// 1/1/1 # # #").split(" "),
    *("xxbos xxmaj xxup xxrep xxwrep xxunk xxfld xxfake").split(),
    *('<br /> <unk> &amp; &quot; #39; quot; nbsp; amp; \\n \\" @.@ @-@ &#128512; &nbsp; &lt;br').split(),
    *(
        "the The THE no No NO word word! word. can't Can't CAN'T don't He's it's I'm U.S.A. e.g. Mr. mr. a.m. 5pm 10km"
    ).split(),
    *("http://x.y/z?q=1#f www.a.com a@b.org 1,000.50 111 $5 3rd 1980s mother-in-law and/or no\nno\nno   ").split(" "),
    *("EE. UU. ee. uu. z.B. d.h. l'eau aujourd'hui qu'il p.ej. \u00c1rbol Stra\u00dfe GRO\u00df \u00c9t\u00e9").split(),
    "  ",
    " \n\n ",
    "\n\n",
    " @.@ ",
    " no no no ",
]
"""Strings that fastai's rules and spaCy treat specially."""
rich_texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=14).map("".join)
EXAMPLES = int(os.environ.get("TOKENIZER_EXAMPLES", "120"))
_cached_tokenizer = functools.cache(Tokenizer)


@pytest.mark.parametrize("lang", ["en", "de", "fr", "es", "ru"])
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(rich_texts, min_size=1, max_size=4))
def test_tokens_are_fastais_on_any_text(lang: str, texts: list[str]):
    assert _cached_tokenizer(lang).tokenize(texts) == fastai_tokens(texts, lang)


def test_a_line_of_a_megabyte_is_tokenized():
    line = "Word, another word; and :) 12 xx " * 33_000
    (tokens,) = _english.tokenize([line])
    assert len(line) > 1_000_000  # more than spaCy's pipeline takes
    assert tokens == ["xxbos", *fastai_tokens([line[:-1][: len(line) // 33]])[0][1:] * 33]


@pytest.mark.parametrize("text", ["a///b", "/// x", "###", "\\\\\\ y", "no\nno\nno", "111 1 1 1", "aaa aaa aaa", "333 3"])
def test_repetitions_are_found_wherever_they_are(text: str):
    assert _english.tokenize([text]) == fastai_tokens([text])


def test_exceptions_of_spacy_reach_over_spaces():
    texts = ["great:) )", "great:) and", "view:)) )", "(score): :)", "''clients''. .'"]
    assert _english.tokenize(texts) == fastai_tokens(texts)


def test_rules_of_the_users_own_come_after_fastais(tmp_path: Path):
    tokenizer = Tokenizer("en", rules=[lambda text: text.replace("movie", "film")])
    assert tokenizer.tokenize(["A MOVIE. movie!!!"]) == [["xxbos", "a", "xxup", "film", ".", "film", "xxrep", "3", "!"]]
    config = TokenizerConfig(rules=["textwrap.dedent"])
    assert open_tokenizer(config, tmp_path).tokenize(["Hi"]) == [["xxbos", "xxmaj", "hi"]]
    with pytest.raises(UserError, match=r"tokenizer\.rules: 'textwrap\.nothing' cannot be imported"):
        open_tokenizer(TokenizerConfig(rules=["textwrap.nothing"]), tmp_path)


def test_a_full_tokenizer_starts_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer_module, "TOKENS_KEPT", 3)
    tokenizer = Tokenizer("en")
    for texts in (TEXTS[2:4], TEXTS[4:], TEXTS[:3]):
        assert tokenizer.tokenize(texts) == fastai_tokens(texts)
    assert "movie" in tokenizer.tokens
    assert "never" not in tokenizer.tokens  # of the texts before


def test_an_unknown_language_is_named():
    with pytest.raises(UserError, match=r"tokenizer\.lang='klingon': give spaCy's code"):
        Tokenizer("klingon")


@pytest.mark.parametrize("at_once", [0, 30, 1_000_000])
def test_merged_counts_make_fastais_vocabulary(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocab_merge, "COUNTS_AT_ONCE", at_once)
    tokenizer, texts = Tokenizer("en"), TEXTS * 2 + ["b b b a a a c c c d"]
    documents = tokenizer.tokenize(texts)
    shards = []
    for start in (0, 5, 9):
        ids, _ = tokenizer.encode(texts[start : {0: 5, 5: 9, 9: None}[start]])
        shards.append(localize(ids, tokenizer.tokens).counts)
    counts = Counter(token for document in documents for token in document)
    vocab = build_vocab(vocab_merge.frequent_tokens(shards, 2, 40, tmp_path / "spilled"), min_freq=2, max_vocab=40)
    assert vocab == make_vocab(counts, min_freq=2, max_vocab=40)
    assert len(vocab) % 8 == 0


def test_local_ids_map_to_the_vocabulary():
    vocab = ["xxunk", "xxpad", "b", "a", "xxfake", "xxfake"]
    tokens = token_counts(["a", "never seen", "b", "xxfake"], [1, 1, 1, 1])["token"]
    assert id_map(tokens, known_tokens(vocab)).tolist() == [3, UNK_ID, 2, UNK_ID]
    assert token_ids(vocab) == {"xxunk": 0, "xxpad": 1, "b": 2, "a": 3}


@pytest.mark.parametrize(
    ("lang", "library"), [("th", "pythainlp"), ("zh", "jieba"), ("ja", "sudachipy"), ("ko", "natto-py"), ("vi", "pyvi")]
)
def test_a_language_that_spacy_splits_by_another_library_is_one_for_sentencepiece(lang: str, library: str):
    with pytest.raises(UserError, match=f"^tokenizer.lang='{lang}': [^\n]*{library}[^\n]*tokenizer.type=sentencepiece"):
        Tokenizer(lang)
