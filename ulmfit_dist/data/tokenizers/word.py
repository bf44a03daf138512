"""fastai's tokens: its text rules, spaCy's word tokenizer for the language, its rule after that.

There are two paths. The reference path calls fastai's rules and spaCy on each text, in fastai's order, so its tokens are
fastai's by construction. The fast path (`data/tokenizers/fast/chunk_cache.py`) relies on most words of a text having been
seen before. It requires fastai's default rules and a tokenizer of spaCy's own class; the reference path handles everything
else, and the few texts for which the fast path cannot prove its result.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data.token_store import MODEL_FILE
from ulmfit_dist.data.tokenizers.base import TOKENS_KEPT, Encoded, Rule, TextTokenizer, import_rule
from ulmfit_dist.data.tokenizers.fast.chunk_cache import ChunkTokenizer
from ulmfit_dist.data.tokenizers.rules import SPECIAL_TOKENS, TEXT_RULES, compose, replace_space
from ulmfit_dist.data.tokenizers.sentencepiece import SentencePieceTokenizer
from ulmfit_dist.data.vocab import StringIndexer
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.imports import check_trust

LIBRARIES = {"th": "pythainlp", "zh": "jieba or spacy-pkuseg", "ja": "sudachipy", "ko": "mecab-ko by natto-py", "vi": "pyvi"}
"""By language, what spaCy splits its texts by."""


class Tokenizer(TextTokenizer):
    """Texts to tokens, equal to those of fastai 2.8's `WordTokenizer` with its default rules.

    What it has learned of words is kept from call to call, in tables that grow together, and in caches inside spaCy. That
    is what makes it fast, so threads take turns (`encode_with_tokens`). The trade-off is small: tokenizing is Python code,
    which runs in one thread at a time in any case.

    Args:
        lang: spaCy's code of the language.
        rules: functions from text to text, called after fastai's rules.

    Raises:
        UserError: spaCy has no such language, or is not installed.
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
        found = [None] * len(texts) if self._chunks is None else self._chunks.encode(texts)
        encoded = [self._encode_plainly(text) if ids is None else ids for text, ids in zip(texts, found, strict=True)]
        return Encoded(
            np.concatenate(encoded).astype(np.uint32), np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        )

    def encode_with_tokens(self, texts: Iterable[str]) -> tuple[Encoded, list[str]]:
        with self._turn:
            return self.encode(texts), self.tokens

    def _start(self) -> None:
        self._chunks, self._ids = None, StringIndexer()  # what was known goes before more is learned
        self._spacy = _spacy_tokenizer(self.lang)
        if not self.rules and _is_spacys_own(self._spacy):
            self._chunks = ChunkTokenizer(self._spacy, self._ids)

    def _encode_plainly(self, text: str) -> np.ndarray:
        return self._ids.of([replace_space(token.text) for token in self._spacy(self._before(text))])


def open_tokenizer(config: TokenizerConfig, folder: Path, trust_remote_code: bool = True) -> TextTokenizer:
    """The tokenizer of a config.

    Args:
        folder: a token store or an exported model, with the model of SentencePiece in it.
        trust_remote_code: whether functions that the config names may be called.

    Raises:
        UserError: no such language or rule; no model there, or a damaged one; a package is not installed; no trust.
    """
    check_rules(config, folder, trust_remote_code)
    rules = [import_rule(path) for path in config.rules]
    if config.type == "word":
        return Tokenizer(config.lang, rules)
    try:
        return SentencePieceTokenizer((folder / MODEL_FILE).read_bytes(), rules)
    except OSError as error:
        raise UserError(f"{folder / MODEL_FILE}: cannot be read ({error.strerror})") from None


def check_rules(config: TokenizerConfig, folder: Path, trust_remote_code: bool) -> None:
    """Raise UserError if the config of a model names functions to be called, and nobody has said that it may."""
    check_trust({"tokenizer.rules": config.rules}, folder, trust_remote_code)


def _spacy_tokenizer(lang: str) -> Any:
    """spaCy's tokenizer of the language, with fastai's special tokens kept whole."""
    try:
        import spacy
        from spacy.symbols import ORTH
    except ImportError:
        raise UserError(
            "tokenizing needs spaCy: pip install spacy; or set data.token_store to a prepared token store"
        ) from None
    try:
        tokenizer = spacy.blank(lang).tokenizer
    except ImportError as error:
        if "E048" in str(error):
            raise UserError(f"tokenizer.lang={lang!r}: give spaCy's code of a language, such as en or de") from None
        raise _of_another_library(lang) from None  # it is missing, and would not help
    if not hasattr(tokenizer, "add_special_case"):
        raise _of_another_library(lang)
    tokenizer.vocab.lex_attr_getters = {}  # is_alpha, shape, ...: not needed, and most of what a new word costs
    for token in SPECIAL_TOKENS:
        tokenizer.add_special_case(token, [{ORTH: token}])
    return tokenizer


def _of_another_library(lang: str) -> UserError:
    by = f"another library, {LIBRARIES[lang]}" if lang in LIBRARIES else "a tokenizer of another kind"
    return UserError(
        f"tokenizer.lang={lang!r}: spaCy splits this language by {by}, which cannot keep fastai's special tokens whole, "
        f"installed or not: set tokenizer.type: sentencepiece, which learns to split it from your texts"
    )


def _is_spacys_own(tokenizer: Any) -> bool:
    """Whether it splits at spaces: some languages have a tokenizer of another kind."""
    from spacy.tokenizer import Tokenizer as SpacyTokenizer

    return type(tokenizer) is SpacyTokenizer
