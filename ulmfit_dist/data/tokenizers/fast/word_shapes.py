"""Words that spaCy must split alike, told by their shapes.

spaCy splits a word by regular expressions for its affixes and by a list of exceptions. To nearly all of the expressions a
letter is a letter: what they find in `movie!)` they find in `aaaaa!)`. So words that differ in such letters alone are split
at the same places, and one of them, the shape, is given to spaCy for all. That this holds is not assumed but read off
the expressions of the language's tokenizer: each set of characters in them is looked at, and a letter that one of them
tells from others stays as it is, be it always or in words with a character without which the expression finds nothing
(the digit before `km`, the apostrophe of `'s`). Runs of letters that are part of an exception stay too.

A word's shape has the word's length. It is for words in lower case; only the letters a to z are exchanged.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

_parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")
_RUN = re.compile("[a-z]+")
_TWO_LETTERS = re.compile("[a-z]{2}")
_EXPRESSIONS = ("prefix_search", "suffix_search", "infix_finditer", "token_match", "url_match")
_ALWAYS = ""

Told = dict[str, frozenset[str]]
"""Letters that an expression tells apart, by the character that a word must have for that; or `_ALWAYS`."""


class WordShapes:
    """The shapes of words.

    Args:
        tokenizer: a `spacy.tokenizer.Tokenizer`.
    """

    def __init__(self, tokenizer: Any):
        self._exceptions = {run for rule in tokenizer.rules for run in _RUN.findall(rule)}
        self._told: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
        for name in _EXPRESSIONS:
            for guard, letters in _told_apart(getattr(tokenizer, name), is_prefix=name == "prefix_search").items():
                self._told[guard] |= letters
        guards = "".join(map(re.escape, self._told))
        self._guards = re.compile(f"[{guards}]" if guards else "(?!)")

    def __call__(self, words: Sequence[str]) -> list[str]:
        """The shape of each word. Words have no white space in them."""
        groups = defaultdict(list)
        find = self._guards.findall
        for i, word in enumerate(words):
            groups[frozenset(find(word))].append(i)
        shapes = list(words)
        for guards, places in groups.items():
            for i, shape in zip(places, self._shapes([words[i] for i in places], guards), strict=True):
                shapes[i] = shape
        return shapes

    def _shapes(self, words: list[str], guards: Iterable[str]) -> list[str]:
        """Shapes of words that have these of the characters that letters are told apart by."""
        kept = self._told[_ALWAYS].union(*(self._told[guard] for guard in guards))
        exchanged = sorted(LETTERS - kept)
        if not exchanged:
            return words
        table = bytes.maketrans("".join(exchanged).encode(), exchanged[0].encode() * len(exchanged))
        text = "\n".join(words)
        changed = text.encode().translate(table).decode()  # as bytes: of a string, this takes many times as long
        exceptions, runs, new_runs = self._exceptions, _RUN.findall(text), _RUN.findall(changed)
        for i, (run, new) in enumerate(zip(runs, new_runs, strict=True)):
            if run in exceptions or new in exceptions:
                new_runs[i] = run
        between = _RUN.split(changed)
        return "".join(chain.from_iterable(zip(between, [*new_runs, ""], strict=True))).split("\n")


def splits_a_run(shape: str, bounds: Sequence[int]) -> bool:
    """Whether a token ends between two letters: such a shape speaks for itself alone, for exceptions may begin there.

    Args:
        bounds: where the tokens of the shape begin, and where the last ends.
    """
    return any(_TWO_LETTERS.match(shape, bound - 1) for bound in bounds[1:-1])


def _told_apart(search: Any, is_prefix: bool) -> Told:
    """What a method of a compiled expression tells apart: nothing where there is none, all where it cannot be known."""
    if search is None:
        return {}
    expression = getattr(search, "__self__", None)
    if not isinstance(expression, re.Pattern) or expression.flags & (re.IGNORECASE | re.LOCALE):
        return {_ALWAYS: LETTERS}
    told, _ = _walk(_parser.parse(expression.pattern, expression.flags), is_prefix)
    return told


def _walk(sequence: Any, taking_tells: bool) -> tuple[Told, frozenset[str]]:
    """What a parsed sequence tells apart, and characters of which it must find one (empty: none are known).

    Args:
        sequence: what `re`'s parser makes of an expression.
        taking_tells: taking a letter, rather than looking at it, tells all letters apart.
    """
    told: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
    needed: frozenset[str] = frozenset()
    for kind, argument in sequence:
        more, one_of = _walk_item(str(kind), argument, taking_tells)
        for guard, letters in more.items():
            told[guard] |= letters
        if one_of and (not needed or len(one_of) < len(needed)):
            needed = one_of
    if needed:
        unguarded = told.pop(_ALWAYS, frozenset())
        for guard in needed if unguarded else ():
            told[guard] |= unguarded
    return dict(told), needed


def _walk_item(kind: str, argument: Any, taking_tells: bool) -> tuple[Told, frozenset[str]]:
    if kind in ("LITERAL", "NOT_LITERAL", "IN"):
        return _of_set(kind, argument, taking_tells)
    if kind in ("AT", "ANY"):
        return {}, frozenset()
    if kind == "SUBPATTERN":
        return _walk(argument[-1], taking_tells)
    if kind == "ASSERT":
        return _walk(argument[1], taking_tells=False)
    if kind == "ASSERT_NOT":
        return _walk(argument[1], taking_tells=False)[0], frozenset()
    if kind in ("MAX_REPEAT", "MIN_REPEAT"):
        told, needed = _walk(argument[2], taking_tells)
        return told, needed if argument[0] else frozenset()
    if kind == "BRANCH":
        told = {}
        for branch in argument[1]:
            for guard, letters in _walk(branch, taking_tells)[0].items():
                told[guard] = told.get(guard, frozenset()) | letters
        return told, frozenset()
    return {_ALWAYS: LETTERS}, frozenset()


def _of_set(kind: str, argument: Any, taking_tells: bool) -> tuple[Told, frozenset[str]]:
    """The same for one set of characters."""
    members = argument if kind == "IN" else [(kind, argument)]
    matches = re.compile(_class_of(members)).fullmatch
    letters = frozenset(filter(matches, LETTERS))
    if letters and taking_tells:
        return {_ALWAYS: LETTERS}, frozenset()
    if letters:
        return {_ALWAYS: min(letters, LETTERS - letters, key=len)}, frozenset()
    return {}, _members(members)


def _class_of(members: Iterable[tuple[Any, Any]]) -> str:
    """A set as parsed, written as an expression again."""
    categories = {"DIGIT": r"\d", "NOT_DIGIT": r"\D", "SPACE": r"\s", "NOT_SPACE": r"\S", "WORD": r"\w", "NOT_WORD": r"\W"}
    written = ""
    for kind, argument in members:
        name = str(kind)
        if name in ("NEGATE", "NOT_LITERAL"):
            written = "^" + written
        if name in ("LITERAL", "NOT_LITERAL"):
            written += re.escape(chr(argument))
        elif name == "RANGE":
            written += f"{re.escape(chr(argument[0]))}-{re.escape(chr(argument[1]))}"
        elif name == "CATEGORY":
            written += categories[str(argument).removeprefix("CATEGORY_")]
    return f"[{written}]"


def _members(members: Iterable[tuple[Any, Any]]) -> frozenset[str]:
    """The characters of a set, if it is one of few and they can be named."""
    found: set[str] = set()
    for kind, argument in members:
        low, high = (argument, argument) if str(kind) == "LITERAL" else argument if str(kind) == "RANGE" else (0, 1000)
        if high - low > 20:
            return frozenset()
        found.update(map(chr, range(low, high + 1)))
    return frozenset(found)
