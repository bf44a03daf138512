"""Word shapes: representatives of words that spaCy must split alike.

spaCy splits a word by regular expressions for its affixes and by a list of exceptions. Nearly all expressions treat letters
alike: what matches in `movie!)` matches in `aaaaa!)`. So words that differ only in such letters are split at the same
positions, and spaCy splits one of them, the shape. This is not assumed, but derived from the expressions of the language's
tokenizer: a letter that a character set of an expression distinguishes from others is kept, either always, or in words with
a character that the expression requires (the digit before `km`, the apostrophe of `'s`). Runs of letters that are part of an
exception are kept, too. Trade-off: it depends on `re`'s private parser.

A shape has the length of its word. Words are in lower case; only the letters a to z are replaced.
"""

from __future__ import annotations

import functools
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

Distinguished = dict[str, frozenset[str]]
"""Letters that an expression distinguishes, by the character that the word must contain; or `_ALWAYS`."""


class WordShapes:
    """Function from words to their shapes.

    Args:
        tokenizer: a `spacy.tokenizer.Tokenizer`.
    """

    def __init__(self, tokenizer: Any):
        self._exceptions = {run for rule in tokenizer.rules for run in _RUN.findall(rule)}
        self._distinguished: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
        for name in _EXPRESSIONS:
            for guard, letters in _distinguished_letters(
                getattr(tokenizer, name), is_prefix=name == "prefix_search"
            ).items():
                self._distinguished[guard] |= letters
        guards = "".join(map(re.escape, self._distinguished))
        self._guards = re.compile(f"[{guards}]" if guards else "(?!)")

    def __call__(self, words: Sequence[str]) -> list[str]:
        """Return the shape of each word; words must not contain white space."""
        groups = defaultdict(list)
        find = self._guards.findall
        for i, word in enumerate(words):
            groups[frozenset(find(word))].append(i)
        shapes = list(words)
        for guards, indices in groups.items():
            for i, shape in zip(indices, self._shapes([words[i] for i in indices], guards), strict=True):
                shapes[i] = shape
        return shapes

    def _shapes(self, words: list[str], guards: Iterable[str]) -> list[str]:
        """Return the shapes of words that contain these guards: characters that some expression requires."""
        kept = self._distinguished[_ALWAYS].union(*(self._distinguished[guard] for guard in guards))
        exchanged = sorted(LETTERS - kept)
        if not exchanged:
            return words
        table = bytes.maketrans("".join(exchanged).encode(), exchanged[0].encode() * len(exchanged))
        text = "\n".join(words)
        changed = text.encode().translate(table).decode()  # `str.translate` takes many times as long
        exceptions, runs, new_runs = self._exceptions, _RUN.findall(text), _RUN.findall(changed)
        for i, (run, new) in enumerate(zip(runs, new_runs, strict=True)):
            if run in exceptions or new in exceptions:
                new_runs[i] = run
        between = _RUN.split(changed)
        return "".join(chain.from_iterable(zip(between, [*new_runs, ""], strict=True))).split("\n")


def splits_a_run(shape: str, bounds: Sequence[int]) -> bool:
    """Return whether a token ends between two letters; such a shape represents no other word.

    Args:
        bounds: begin of each token of the shape, and end of the last.
    """
    return any(_TWO_LETTERS.match(shape, bound - 1) for bound in bounds[1:-1])


def _distinguished_letters(search: Any, is_prefix: bool) -> Distinguished:
    """Return the letters that a compiled expression distinguishes: none if it is None, all if that cannot be derived."""
    if search is None:
        return {}
    expression = getattr(search, "__self__", None)
    if not isinstance(expression, re.Pattern) or expression.flags & (re.IGNORECASE | re.LOCALE):
        return {_ALWAYS: LETTERS}
    return _letters_of_pattern(expression, is_prefix)


@functools.lru_cache(maxsize=64)
def _letters_of_pattern(expression: re.Pattern[str], is_prefix: bool) -> Distinguished:
    distinguished, _ = _walk(_parser.parse(expression.pattern, expression.flags), is_prefix)
    return distinguished


def _walk(sequence: Any, consuming: bool) -> tuple[Distinguished, frozenset[str]]:
    """Return the letters that a parsed sequence distinguishes, and characters of which a match needs one (empty: unknown).

    Args:
        sequence: result of `re`'s parser.
        consuming: a consumed letter, unlike one in an assertion, makes all letters distinguished.
    """
    distinguished: defaultdict[str, frozenset[str]] = defaultdict(frozenset)
    needed: frozenset[str] = frozenset()
    for opcode, argument in sequence:
        more, one_of = _walk_item(str(opcode), argument, consuming)
        for guard, letters in more.items():
            distinguished[guard] |= letters
        if one_of and (not needed or len(one_of) < len(needed)):
            needed = one_of
    if needed:
        unguarded = distinguished.pop(_ALWAYS, frozenset())
        for guard in needed if unguarded else ():
            distinguished[guard] |= unguarded
    return dict(distinguished), needed


def _walk_item(opcode: str, argument: Any, consuming: bool) -> tuple[Distinguished, frozenset[str]]:
    if opcode in ("LITERAL", "NOT_LITERAL", "IN"):
        return _of_set(opcode, argument, consuming)
    if opcode in ("AT", "ANY"):
        return {}, frozenset()
    if opcode == "SUBPATTERN":
        return _walk(argument[-1], consuming)
    if opcode == "ASSERT":
        return _walk(argument[1], consuming=False)
    if opcode == "ASSERT_NOT":
        return _walk(argument[1], consuming=False)[0], frozenset()
    if opcode in ("MAX_REPEAT", "MIN_REPEAT"):
        distinguished, needed = _walk(argument[2], consuming)
        return distinguished, needed if argument[0] else frozenset()
    if opcode == "BRANCH":
        distinguished = {}
        for branch in argument[1]:
            for guard, letters in _walk(branch, consuming)[0].items():
                distinguished[guard] = distinguished.get(guard, frozenset()) | letters
        return distinguished, frozenset()
    return {_ALWAYS: LETTERS}, frozenset()


def _of_set(opcode: str, argument: Any, consuming: bool) -> tuple[Distinguished, frozenset[str]]:
    """Return the same for one character set."""
    members = argument if opcode == "IN" else [(opcode, argument)]
    matches = re.compile(_class_of(members)).fullmatch
    letters = frozenset(filter(matches, LETTERS))
    if letters and consuming:
        return {_ALWAYS: LETTERS}, frozenset()
    if letters:
        return {_ALWAYS: min(letters, LETTERS - letters, key=len)}, frozenset()
    return {}, _members(members)


def _class_of(members: Iterable[tuple[Any, Any]]) -> str:
    """Return a parsed character set as an expression."""
    categories = {"DIGIT": r"\d", "NOT_DIGIT": r"\D", "SPACE": r"\s", "NOT_SPACE": r"\S", "WORD": r"\w", "NOT_WORD": r"\W"}
    written = ""
    for opcode, argument in members:
        name = str(opcode)
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
    """Return the characters of a small set of literals and ranges; empty for other sets."""
    characters: set[str] = set()
    for opcode, argument in members:
        low, high = (argument, argument) if str(opcode) == "LITERAL" else argument if str(opcode) == "RANGE" else (0, 1000)
        if high - low > 20:
            return frozenset()
        characters.update(map(chr, range(low, high + 1)))
    return frozenset(characters)
