"""Word tokenizer: fastai's text rules, then spaCy's tokenizer of the language, then fastai's rule for tokens.

There are two paths. The reference path applies fastai's rules (`rules.py`) and spaCy to each text, in fastai's order, so
its tokens are fastai's by construction. The fast path (`data/tokenizers/fast/chunk_cache.py`) looks up most words of a text
in a cache. It requires fastai's default rules and a tokenizer of spaCy's standard class; the reference path handles
everything else, and the few texts for which the fast path cannot prove its result. Trade-off: two paths, which
`tests/data/tokenizers/test_word_tokens.py` compares.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ulmfit_dist.data.tokenizers.base import TOKENS_KEPT, Encoded, Rule, TextTokenizer
from ulmfit_dist.data.tokenizers.fast.chunk_cache import ChunkTokenizer
from ulmfit_dist.data.tokenizers.rules import SPECIAL_TOKENS, TEXT_RULES, compose, replace_space
from ulmfit_dist.data.vocab import StringIndexer
from ulmfit_dist.errors import UserError

LIBRARIES = {"th": "pythainlp", "zh": "jieba or spacy-pkuseg", "ja": "sudachipy", "ko": "mecab-ko by natto-py", "vi": "pyvi"}
"""Libraries that spaCy uses for languages without spaces, by language."""
TOKENIZER_ARGUMENTS = (
    "rules", "prefix_search", "suffix_search", "infix_finditer", "token_match", "url_match", "faster_heuristics",
)  # fmt: skip
"""Arguments of spaCy's `Tokenizer` that the language determines."""
_standard_tokenizers: dict[str, Any] = {}
"""A tokenizer of each language used so far, if of spaCy's standard class: never called, only copied."""


class Tokenizer(TextTokenizer):
    """Tokenizer with the tokens of fastai 2.8's `WordTokenizer` and its default rules.

    Tables of chunks, words and ids grow from call to call, as do caches inside spaCy. They make it fast, but are not
    thread-safe, so `encode_with_tokens` holds a lock. The trade-off is small: tokenization is Python code, which runs in one
    thread at a time anyway.

    Args:
        lang: spaCy's code of the language.
        rules: functions from text to text, called after fastai's rules.

    Raises:
        UserError: spaCy does not support the language, or is not installed.
    """

    def __init__(self, lang: str = "en", rules: Sequence[Rule] = ()):
        self.lang, self.rules = lang, rules
        self._before = compose(*TEXT_RULES, *rules)
        self._chunks: ChunkTokenizer | None
        self._turn = threading.Lock()
        self._start()

    @property
    def tokens(self) -> list[str]:
        return list(self._ids)

    def encode(self, texts: Iterable[str]) -> Encoded:
        texts = [str(text) for text in texts]
        if len(self._ids) > TOKENS_KEPT or (self._chunks is not None and self._chunks.is_full(TOKENS_KEPT)):
            self._start()
        if not texts:
            return Encoded(np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64))
        cached = [None] * len(texts) if self._chunks is None else self._chunks.encode(texts)
        encoded = [self._encode_reference(text) if ids is None else ids for text, ids in zip(texts, cached, strict=True)]
        return Encoded(
            np.concatenate(encoded).astype(np.uint32), np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        )

    def encode_with_tokens(self, texts: Iterable[str]) -> tuple[Encoded, list[str]]:
        with self._turn:
            return self.encode(texts), self.tokens

    def _start(self) -> None:
        self._chunks, self._ids = None, StringIndexer()  # free the old tables before filling new ones
        self._spacy = _spacy_tokenizer(self.lang)
        if not self.rules and _is_standard_class(self._spacy):
            self._chunks = ChunkTokenizer(self._spacy, self._ids)

    def _encode_reference(self, text: str) -> np.ndarray:
        return self._ids.of([replace_space(token.text) for token in self._spacy(self._before(text))])


def _spacy_tokenizer(lang: str) -> Any:
    """Return spaCy's tokenizer of a language, with fastai's special tokens as exceptions."""
    try:
        from spacy.symbols import ORTH
    except ImportError:
        raise UserError(
            "tokenizing needs spaCy: pip install spacy; or set data.token_store to a prepared token store"
        ) from None
    try:
        tokenizer = _new_tokenizer(lang)
    except ImportError as error:
        if "E048" in str(error):
            raise UserError(f"tokenizer.lang={lang!r}: give spaCy's code of a language, such as en or de") from None
        raise _unsupported_language(lang) from None  # the library is missing, but would not help
    if not hasattr(tokenizer, "add_special_case"):
        raise _unsupported_language(lang)
    tokenizer.vocab.lex_attr_getters = {}  # is_alpha, shape, ...: unused, and most of the cost of a new word
    for token in SPECIAL_TOKENS:
        tokenizer.add_special_case(token, [{ORTH: token}])
    return tokenizer


def _new_tokenizer(lang: str) -> Any:
    """Return `spacy.blank(lang).tokenizer`; a second one of a standard language takes two thirds of the time."""
    import spacy
    from spacy.vocab import Vocab

    if lang not in _standard_tokenizers:
        tokenizer = spacy.blank(lang).tokenizer
        if not _is_standard_class(tokenizer):
            return tokenizer
        _standard_tokenizers[lang] = tokenizer
    return type(_standard_tokenizers[lang])(
        Vocab(), **{name: getattr(_standard_tokenizers[lang], name) for name in TOKENIZER_ARGUMENTS}
    )


def _unsupported_language(lang: str) -> UserError:
    by = f"another library, {LIBRARIES[lang]}" if lang in LIBRARIES else "a tokenizer of another class"
    return UserError(
        f"tokenizer.lang={lang!r}: spaCy splits this language with {by}, which cannot keep fastai's special tokens whole, "
        f"installed or not: set tokenizer.type=sentencepiece, which learns subwords from your texts"
    )


def _is_standard_class(tokenizer: Any) -> bool:
    """Return whether a tokenizer is of spaCy's standard class, which splits at spaces."""
    from spacy.tokenizer import Tokenizer as SpacyTokenizer

    return type(tokenizer) is SpacyTokenizer
