"""Language detection with py3langid, and the tokenizer for a language.

py3langid (the extra `language`) has 5 MB including its model, is deterministic, and supports 139 languages. lingua supports
75 with 100 MB; langdetect supports 55, is random, and has not been maintained since 2021. Trade-off: py3langid needs longer
texts, so short texts are joined.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data.tokenizers.word import LIBRARIES
from ulmfit_dist.errors import UserError

PIECE = 300
"""Minimum length of a sample, in characters; shorter texts are joined."""
LONGEST = 1000
"""Maximum number of characters of a text in a sample."""
MOST_PIECES = 200
"""Maximum number of samples."""
SPACY_CODES = {"no": "nb"}
"""Codes of spaCy that differ from those of py3langid."""
SURE = 0.6
"""Minimum fraction of the samples in one language."""


@dataclass(frozen=True)
class Language:
    """Language of the texts.

    Attributes:
        code: spaCy's code.
        share: fraction of the samples in this language; 1 if it was given.
        how: method of detection, as a phrase.
    """

    code: str
    share: float
    how: str


def detect_language(texts: Sequence[str], origin: str) -> Language:
    """Return the language of most texts.

    Args:
        origin: name of the texts, for messages.

    Raises:
        UserError: py3langid is not installed, or no language has 60 % of the samples.
    """
    try:
        from py3langid.langid import MODEL_FILE
    except ImportError:
        raise UserError(
            "the language of the texts is not set: give --lang XX (such as --lang en), or pip install "
            "'ulmfit-dist[language]' to detect it"
        ) from None
    identifier = _load_identifier(MODEL_FILE)
    pieces = list(cut_pieces(texts))
    counts = Counter(identifier.classify(piece)[0] for piece in pieces)
    ranked = counts.most_common(3)
    shares = ", ".join(f"{code} {number / len(pieces):.0%}" for code, number in ranked)
    if not ranked or ranked[0][1] < SURE * len(pieces):
        raise UserError(f"{origin}: which language is it? ({shares or 'no text to detect it from'}): give --lang XX")
    code, number = ranked[0]
    return Language(SPACY_CODES.get(code, code), number / len(pieces), f"detected by py3langid in {len(pieces)} samples")


@functools.cache
def _load_identifier(path: str) -> Any:
    """Return py3langid's model, loaded once per process because that takes 0.4 s."""
    from py3langid.langid import LanguageIdentifier

    return LanguageIdentifier.from_model_file(path, norm_probs=True)


def cut_pieces(texts: Sequence[str]) -> Iterator[str]:
    """Yield samples of at least `PIECE` characters, from one long text or several short ones, evenly spaced."""
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
    """Return the config of the tokenizer for a language, and the reason.

    Args:
        is_given: the user has set the language.

    Raises:
        UserError: spaCy does not support the language; SentencePiece is needed, but not installed.
    """
    import importlib.util

    import spacy

    if lang in LIBRARIES:
        if importlib.util.find_spec("sentencepiece") is None:
            raise UserError(
                f"language {lang} has no spaces between words and needs SentencePiece: pip install "
                f"'ulmfit-dist[sentencepiece]'"
            )
        reason = "this language has no spaces between words: SentencePiece learns subwords from the texts"
        return TokenizerConfig(type="sentencepiece", lang=lang), reason
    try:
        spacy.util.get_lang_class(lang)
    except ImportError:
        if is_given:
            raise UserError(f"--lang {lang}: not a language of spaCy: give its code, such as en, de or th") from None
        return TokenizerConfig(lang="xx"), f"spaCy has no rules for {lang}: xx splits at spaces and punctuation"
    return TokenizerConfig(lang=lang), ""
