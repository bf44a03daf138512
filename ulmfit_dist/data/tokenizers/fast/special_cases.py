"""Exceptions of spaCy that may span chunks.

spaCy splits a text at spaces, splits each chunk by its affixes, and looks up exceptions. At the end it searches for
exceptions again, in all tokens of the text: `great:)` is first `great`, `:`, `)`, and the last two become one. The longest
match wins, and a match may continue in the next chunk, where it changes nothing itself but prevents another match: in
`great:) )` the last three tokens match the exception `:))`. So a chunk that this final search changes may be tokenized
separately only if no exception can cross its borders, and a chunk that may be part of an exception with a space in it, as in
Russian, never. Trade-off: when in doubt, the whole text takes the reference path.
"""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

EXPRESSIONS = ("prefix_search", "suffix_search", "infix_finditer", "token_match", "url_match")
"""Attributes of a spaCy tokenizer that split words."""


class Patterns(NamedTuple):
    """Exceptions without the search for exceptions, which depend only on the language.

    Attributes:
        pairs: consecutive tokens of exceptions.
        outcomes: tokens of exceptions that the final search may find, by their longest token.
        spanning: matches the longest part of an exception that contains a space; None if there is none.
    """

    pairs: frozenset[tuple[str, str]]
    outcomes: dict[str, list[list[str]]]
    spanning: re.Pattern[str] | None


_known_patterns: dict[tuple[Any, ...], Patterns] = {}
"""Patterns by the tokenizer's rules and expressions: finding them took a fifth of the time that creates a tokenizer."""


class SpecialCases:
    """Exceptions of a spaCy tokenizer.

    Args:
        tokenizer: a `spacy.tokenizer.Tokenizer`.

    Attributes:
        keys: spaCy's keys of tokens (ORTH), uint64: without one of them, the final search has changed nothing.
        pairs: consecutive tokens of exceptions: a match continues in the next chunk only with one of these pairs at the
            border.
    """

    def __init__(self, tokenizer: Any):
        from spacy.symbols import ORTH
        from spacy.tokenizer import Tokenizer

        self.tokenizer = tokenizer
        arguments = {name: getattr(tokenizer, name) for name in EXPRESSIONS}
        self.without = Tokenizer(tokenizer.vocab, rules={}, **arguments)
        rules = tuple((case, tuple(part[ORTH] for part in parts)) for case, parts in tokenizer.rules.items())
        key = rules, *arguments.values()
        if key not in _known_patterns:
            _known_patterns[key] = _find_patterns(tokenizer, self.without)
        self.pairs, self._outcomes, self._spanning = _known_patterns[key]
        self.keys = np.array([tokenizer.vocab.strings[token] for token in self._outcomes], dtype=np.uint64)

    @property
    def has_spanning(self) -> bool:
        """True if exceptions contain a space; only those in lower case count, because texts are in lower case."""
        return self._spanning is not None

    def may_span(self, chunk: str) -> bool:
        """Return whether a chunk may be part of an exception that contains a space; True when in doubt."""
        return self._spanning is not None and self._spanning.search(chunk) is not None

    def tokens_before(self, chunk: str, tokens: list[str]) -> list[str] | None:
        """Return the tokens of a chunk before spaCy's final search; None if the search has changed nothing."""
        outcomes = [outcome for token in tokens for outcome in self._outcomes.get(token, ())]
        if not any(_contains(tokens, outcome) for outcome in outcomes):
            return None
        before = self._split_affixes(chunk)
        return None if tokens == before else before

    def _split_affixes(self, chunk: str) -> list[str]:
        """Return the tokens of a chunk that is an exception between affixes, or contains no exception."""
        rules, tokenizer, inner = self.tokenizer.rules, self.tokenizer, chunk
        prefixes: list[str] = []
        suffixes: list[str] = []
        while inner and inner not in rules:
            prefix = tokenizer.find_prefix(inner)
            suffix = 0 if prefix and inner[prefix:] in rules else tokenizer.find_suffix(inner[prefix:])
            if suffix and inner[:-suffix] in rules:
                prefix = 0
            end = len(inner) - suffix
            if not (prefix or suffix) or prefix > end:
                break
            prefixes += [inner[:prefix]] if prefix else []
            suffixes += [inner[end:]] if suffix else []
            inner = inner[prefix:end]
        if inner not in rules:
            return _texts(self.without(chunk))
        return [*prefixes, *_texts(tokenizer(inner)), *reversed(suffixes)]


def _find_patterns(tokenizer: Any, without: Any) -> Patterns:
    """Return the patterns of the exceptions of a tokenizer.

    Args:
        without: the same tokenizer without exceptions.
    """
    tokens = {case: _texts(without(case)) for case in tokenizer.rules}
    pairs = frozenset(pair for pattern in tokens.values() for pair in pairwise(pattern))
    within_longer = {token for pattern in tokens.values() if len(pattern) > 1 for token in pattern}
    outcomes: defaultdict[str, list[list[str]]] = defaultdict(list)
    for case, pattern in tokens.items():
        outcome = _texts(tokenizer(case))
        if outcome != pattern and (len(pattern) > 1 or pattern[0] in within_longer):
            outcomes[max(outcome, key=len)].append(outcome)
    spaced = [case.split() for case in tokenizer.rules if case == case.lower() and len(case.split()) > 1]
    longest = sorted({max(parts, key=len) for parts in spaced})
    return Patterns(pairs, dict(outcomes), re.compile("|".join(map(re.escape, longest))) if longest else None)


def _contains(tokens: list[str], part: list[str]) -> bool:
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens) - len(part) + 1))


def _texts(doc: Any) -> list[str]:
    return [token.text for token in doc]
