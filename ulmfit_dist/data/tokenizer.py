"""fastai's tokens: its text rules, spaCy's word tokenizer for the language, its rule after that.

The rules are fastai's own functions, called in its order, so the tokens are its tokens by construction; only the
wrapping in `L` objects, and with it half of the time, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastai.text.core import defaults
from fastcore.basics import compose

from ulmfit_dist.config import TokenizerConfig
from ulmfit_dist.errors import UserError


class Tokenizer:
    """Texts to lists of tokens, equal to those of fastai 2.8's `WordTokenizer` with its default rules.

    Args:
        lang: spaCy's code of the language.

    Raises:
        UserError: spaCy has no such language, or is not installed.
    """

    def __init__(self, lang: str = "en"):
        self.lang = lang
        self._spacy = _spacy_tokenizer(lang)
        self._before = compose(*defaults.text_proc_rules)
        self._after = compose(*defaults.text_postproc_rules)

    @classmethod
    def from_config(cls, config: TokenizerConfig) -> Tokenizer:
        return cls(config.lang)

    def tokenize(self, texts: Iterable[str]) -> list[list[str]]:
        """The tokens of each text, in order."""
        return list(self.stream(texts))

    def stream(self, texts: Iterable[str]) -> Iterator[list[str]]:
        """As `tokenize`, one text at a time."""
        for text in texts:
            yield [self._after(token.text) for token in self._spacy(self._before(text))]


def _spacy_tokenizer(lang: str):  # type: ignore[no-untyped-def]
    """spaCy's tokenizer of the language, with fastai's special tokens kept whole."""
    try:
        import spacy
        from spacy.symbols import ORTH
    except ImportError:
        raise UserError("tokenizing needs spaCy: pip install spacy; or set data.store to a prepared token store") from None
    try:
        tokenizer = spacy.blank(lang).tokenizer
    except ImportError as error:
        raise UserError(f"tokenizer.lang={lang!r}: {str(error).splitlines()[0]}") from None
    for token in defaults.text_spec_tok:
        tokenizer.add_special_case(token, [{ORTH: token}])
    return tokenizer
