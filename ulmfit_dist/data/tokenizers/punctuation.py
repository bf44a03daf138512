"""Punctuation by language: characters that are joined to their left or right, and words that spaCy splits.

Tables, not learned from texts: they work without a corpus of the language, at the cost of rare cases.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise

CLOSING = frozenset(".,;:!?…)]}»›”’%‰°™®")
"""Characters that are joined to their left."""
OPENING = frozenset("([{«‹„‚“‘¿¡")
"""Characters that are joined to their right."""
SENTENCE_ENDS = frozenset(".!?…")
CURRENCIES = ("$", "£", "€", "¥", "₹")
CLOSED_BY = {"”": "“„", "“": "„", "’": "‘", "‘": "‚", "»": "«", "«": "»", "›": "‹", "‹": "›"}
"""Opening quotation marks by closing one: German closes „ with “, and may open with »."""
OPENED_BY_GUILLEMET = frozenset({"da", "de"})
"""Languages in which » may open a quotation."""
SAME_ON_BOTH_SIDES = frozenset({"fi", "sv"})
"""Languages that also open a quotation with ”."""
STRAIGHT = frozenset({'"', "'", "''", "``", "*"})
"""Tokens that may both open and close."""
QUOTATIONS = frozenset({'"', "'", "''", "“", "„", "«", "»", "‘", "‚", "”"})
"""Quotation marks."""
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff00-\uffef]")
"""Characters written without spaces: Thai, Lao, Burmese, Khmer, Chinese and Japanese, with their punctuation."""
ENCLITIC = re.compile(r"(?:['’](?:s|m|re|ve|ll|d|t)|n['’]?t)\Z")
HYPHENATED = re.compile(r"-[^\W\d_]")
DASHES = frozenset({"-", "--", "–", "—"})
ELIDED = re.compile(r"(?!po['’])[^\W\d_]+['’]\Z")
ELIDING = frozenset({"ca", "fr", "it"})
"""Languages whose articles lose a vowel before the next word: l'homme."""
SPACED_PERCENT = frozenset({"cs", "da", "de", "es", "fi", "fr", "nb", "ru", "sk", "sv", "uk"})
"""Languages that write 5 %."""
TIGHT_UNITS = frozenset({"m", "k", "g", "t", "mb", "gb", "tb", "kb", "mm", "m.", "k."})
"""Units that are joined to their number in English: £10m."""
SPEECH = frozenset("said says he she they it we you who which but and".split())
"""English words after a quotation that ends with a comma."""
COMPOUND_ENDS = frozenset(
    "about around away back bottom by done call down eight eleven ever fifteen fifty first five forty four front full in "
    "like made nine of off on one out over part side six sixty ten third together three through top twelve twenty two up "
    "us".split()
)
"""English stop words that end compounds: follow-up, twenty-one."""
QUOTED_AHEAD = 40
"""Number of tokens in which the closing mark of a straight quotation is searched for."""


@lru_cache
def infixes(lang: str) -> re.Pattern[str]:
    """Return the expression for the infixes at which spaCy splits a word."""
    from spacy.util import compile_infix_regex, get_lang_class

    expression: re.Pattern[str] = compile_infix_regex(get_lang_class(lang).Defaults.infixes or [r"(?!)"])
    return expression


@lru_cache
def dash_words(lang: str) -> frozenset[str]:
    """Return the words before which `-` is a dash: the stop words of a language, without those that end compounds."""
    from spacy.util import get_lang_class

    return frozenset(get_lang_class(lang).Defaults.stop_words) - COMPOUND_ENDS


@lru_cache
def split_pairs(lang: str) -> frozenset[tuple[str, str]]:
    """Return pairs of consecutive tokens into which spaCy splits one word: `do` and `n't`, `can` and `not`."""
    from spacy.symbols import ORTH
    from spacy.util import get_lang_class

    exceptions = get_lang_class(lang).Defaults.tokenizer_exceptions.values()
    split = ([str(part[ORTH]).lower() for part in parts] for parts in exceptions)
    return frozenset(pair for parts in split for pair in pairwise(parts))
