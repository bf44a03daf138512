"""The language of texts, by py3langid, and the tokenizer that it needs.

py3langid (the extra `language`) is 5 MB of Python with its model inside, gives the same answer each time, and knows 139
languages. lingua knows 75 in 100 MB, langdetect 55, draws by chance and has not been kept since 2021.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data.tokenizers.word import LIBRARIES
from ulmfit_dist.errors import UserError

PIECE = 300
"""Characters that a language is recognized from, at least, where texts are shorter."""
LONGEST = 1000
MOST_PIECES = 200
SPACY_CODES = {"no": "nb"}
"""Codes of spaCy that differ from those of py3langid."""
SURE = 0.6
"""Share of the pieces below which a language is a question."""


@dataclass(frozen=True)
class Language:
    """A language and how it was found.

    Attributes:
        code: spaCy's code.
        share: share of the pieces that are of it; 1 where it was given.
        how: how it was found, as a phrase.
    """

    code: str
    share: float
    how: str


def detect_language(texts: Sequence[str], where: str) -> Language:
    """Return the language of most texts.

    Raises:
        UserError: py3langid is not installed, or no language has most of the texts.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError(
            "the language of the texts: give --lang XX (such as --lang en), or pip install 'ulmfit-dist[language]' to have "
            "it recognized"
        ) from None
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    pieces = list(cut_pieces(texts))
    found = Counter(identifier.classify(piece)[0] for piece in pieces)
    ranked = found.most_common(3)
    shares = ", ".join(f"{code} {number / len(pieces):.0%}" for code, number in ranked)
    if not ranked or ranked[0][1] < SURE * len(pieces):
        raise UserError(f"{where}: which language is it? ({shares or 'no text to tell it from'}): give --lang XX")
    code, number = ranked[0]
    return Language(SPACY_CODES.get(code, code), number / len(pieces), f"recognized by py3langid in {len(pieces)} samples")


def cut_pieces(texts: Sequence[str]) -> Iterator[str]:
    """Yield pieces of at least `PIECE` characters, of several short texts or of a long one, from all over the texts."""
    step = max(math.floor(len(texts) / (MOST_PIECES * 4)), 1)
    piece, count = "", 0
    for text in texts[::step]:
        piece = f"{piece} {text[:LONGEST]}".strip()
        if len(piece) >= PIECE:
            yield piece
            piece, count = "", count + 1
        if count >= MOST_PIECES:
            return
    if piece and not count:
        yield piece


def tokenizer_for(lang: str, is_given: bool) -> tuple[TokenizerConfig, str]:
    """Return how texts of a language are tokenized, and why.

    Raises:
        UserError: spaCy has no such language; it takes SentencePiece, which is not installed.
    """
    import importlib.util

    import spacy

    if lang in LIBRARIES:
        if importlib.util.find_spec("sentencepiece") is None:
            raise UserError(
                f"language {lang}: words are not separated by spaces: it takes SentencePiece: pip install "
                f"'ulmfit-dist[sentencepiece]'"
            )
        reason = "words are no unit in this language: SentencePiece learns pieces of words from the texts"
        return TokenizerConfig(type="sentencepiece", lang=lang), reason
    try:
        spacy.util.get_lang_class(lang)
    except ImportError:
        if is_given:
            raise UserError(f"--lang {lang}: spaCy has no such language: give its code, such as en, de or th") from None
        return TokenizerConfig(lang="xx"), f"spaCy has no rules for {lang}: xx splits at spaces and signs"
    return TokenizerConfig(lang=lang), ""
