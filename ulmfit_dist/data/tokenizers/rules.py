"""fastai's special tokens and text rules, implemented without fastai, whose import takes longer than most tokenization.

The functions have the names of fastai 2.8's and return the same strings for every text. Trade-off: the rules are implemented
twice, so `tests/data/tokenizers/test_rules.py` compares each of them with fastai's on random texts.
"""

from __future__ import annotations

import html
import re

from ulmfit_dist.data.tokenizers.base import Rule

UNK, PAD, BOS, EOS, FLD = "xxunk", "xxpad", "xxbos", "xxeos", "xxfld"
TK_REP, TK_WREP, TK_UP, TK_MAJ = "xxrep", "xxwrep", "xxup", "xxmaj"
SPECIAL_TOKENS = (UNK, PAD, BOS, EOS, FLD, TK_REP, TK_WREP, TK_UP, TK_MAJ)
"""Special tokens in the order of their ids."""

_REPLACEMENTS = (
    ("#39;", "'"),
    ("amp;", "&"),
    ("#146;", "'"),
    ("nbsp;", " "),
    ("#36;", "$"),
    (r"\n", "\n"),
    ("quot;", "'"),
    ("<br />", "\n"),
    (r"\"", '"'),
    ("<unk>", UNK),
    (" @.@ ", "."),
    (" @-@ ", "-"),
    ("...", " …"),
)
"""Remains of HTML and of other tokenizers with their replacements, in order of application."""

_SPECIAL_CHARACTER = re.compile(r"([/#\\])")
_SPACES = re.compile(" {2,}")
_REPEATED_CHARACTER = re.compile(r"(\S)(\1{2,})")
_REPEATED_WORD = re.compile(r"(?:\s|^)(\w+)\s+((?:\1\s+)+)\1(\s|\W|$)")
_ALL_CAPS = re.compile(r"(\s|^)([A-Z]+[^a-z\s]*)(?=(\s|$))")
_CAPITALIZED = re.compile(r"(\s|^)([A-Z][^A-Z\s]*)(?=(\s|$))")


def fix_html(text: str) -> str:
    """Replace remains of HTML markup and of other tokenizers, then HTML entities."""
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    return html.unescape(text)


def replace_rep(text: str) -> str:
    """Write a character that occurs three or more times in a row as `xxrep`, the count and the character."""
    return _REPEATED_CHARACTER.sub(_count_characters, text)


def replace_wrep(text: str) -> str:
    """Write a word that occurs three or more times in a row as `xxwrep`, the count and the word."""
    return _REPEATED_WORD.sub(_count_words, text)


def spec_add_spaces(text: str) -> str:
    r"""Put spaces around /, # and \."""
    return _SPECIAL_CHARACTER.sub(r" \1 ", text)


def rm_useless_spaces(text: str) -> str:
    """Replace several spaces by one."""
    return _SPACES.sub(" ", text)


def replace_all_caps(text: str) -> str:
    """Write a word in capitals in lower case, after `xxup` if it has more than one character."""
    return _ALL_CAPS.sub(lambda match: _lowered(match, TK_UP), text)


def replace_maj(text: str) -> str:
    """Write a capitalized word in lower case, after `xxmaj` if it has more than one character."""
    return _CAPITALIZED.sub(lambda match: _lowered(match, TK_MAJ), text)


def lowercase(text: str) -> str:
    """Return the text in lower case without white space at its ends, after `xxbos`."""
    return f"{BOS} {text.lower().strip()}"


def replace_space(token: str) -> str:
    """Write the spaces in a token as ▁."""
    return token.replace(" ", "▁")


TEXT_RULES: tuple[Rule, ...] = (
    fix_html,
    replace_rep,
    replace_wrep,
    spec_add_spaces,
    rm_useless_spaces,
    replace_all_caps,
    replace_maj,
    lowercase,
)
"""fastai's default rules (`defaults.text_proc_rules`), in the order in which they are applied to a text."""


def compose(*rules: Rule) -> Rule:
    """Return a function that applies rules one after another."""

    def composed(text: str) -> str:
        for rule in rules:
            text = rule(text)
        return text

    return composed


def _count_characters(match: re.Match[str]) -> str:
    character, more = match.groups()
    return f" {TK_REP} {1 + len(more)} {character} "


def _count_words(match: re.Match[str]) -> str:
    word, between, end = match.groups()
    return f" {TK_WREP} {2 + len(between.split())} {word} {end}"


def _lowered(match: re.Match[str], mark: str) -> str:
    before, word = match[1], match[2]
    return f"{before}{mark} {word.lower()}" if len(word) > 1 else f"{before}{word.lower()}"
