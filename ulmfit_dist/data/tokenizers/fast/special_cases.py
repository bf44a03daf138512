"""spaCy's exceptions that reach over the borders of chunks.

spaCy splits a text at spaces, each chunk by its affixes, and looks up exceptions on the way. In the end it looks for
exceptions once more, in all tokens of the text: `great:)` has come out as `great`, `:`, `)`, of which the last two become
one. There the longest match wins, and a match may run on into the next chunk, where it then changes nothing but takes the
place of one that would: in `great:) )` the three last tokens match the exception `:))`. So a chunk that this second look
changes may be tokenized alone only where no exception can cross its borders; and one that may be part of an exception
with a space in it, such as Russian has, never.
"""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np


class SpecialCases:
    """The exceptions of a spaCy tokenizer.

    Args:
        tokenizer: a `spacy.tokenizer.Tokenizer`.

    Attributes:
        keys: spaCy's keys of tokens (ORTH), uint64: where none of them is, the second look has changed nothing.
        pairs: tokens that follow each other in an exception: a match runs from one chunk into the next only with one of
            these on the border.
    """

    def __init__(self, tokenizer: Any):
        from spacy.tokenizer import Tokenizer

        self.tokenizer = tokenizer
        affixes = {name: getattr(tokenizer, name) for name in ("prefix_search", "suffix_search", "infix_finditer")}
        matches = {name: getattr(tokenizer, name) for name in ("token_match", "url_match")}
        self.without = Tokenizer(tokenizer.vocab, rules={}, **affixes, **matches)
        patterns = {case: _texts(self.without(case)) for case in tokenizer.rules}
        self.pairs = {pair for pattern in patterns.values() for pair in pairwise(pattern)}
        within_longer = {token for pattern in patterns.values() if len(pattern) > 1 for token in pattern}
        self._outcomes: defaultdict[str, list[list[str]]] = defaultdict(list)  # by their longest token
        for case, pattern in patterns.items():
            outcome = _texts(tokenizer(case))
            if outcome != pattern and (len(pattern) > 1 or pattern[0] in within_longer):
                self._outcomes[max(outcome, key=len)].append(outcome)
        spaced = [case.split() for case in tokenizer.rules if case == case.lower() and len(case.split()) > 1]
        longest = sorted({max(parts, key=len) for parts in spaced})
        self._spanning = re.compile("|".join(map(re.escape, longest))) if longest else None
        self.keys = np.array([tokenizer.vocab.strings[token] for token in self._outcomes], dtype=np.uint64)

    @property
    def has_spanning(self) -> bool:
        """Whether there are exceptions with a space in them (in lower case: others meet no text)."""
        return self._spanning is not None

    def may_span(self, chunk: str) -> bool:
        """Whether a chunk may be part of an exception with a space in it. In doubt, yes."""
        return self._spanning is not None and self._spanning.search(chunk) is not None

    def tokens_before(self, chunk: str, tokens: list[str]) -> list[str] | None:
        """The tokens of a chunk as they were before spaCy's second look; None where that has changed nothing."""
        outcomes = [outcome for token in tokens for outcome in self._outcomes.get(token, ())]
        if not any(_contains(tokens, outcome) for outcome in outcomes):
            return None
        before = self._first_look(chunk)
        return None if tokens == before else before

    def _first_look(self, chunk: str) -> list[str]:
        """The tokens of a chunk that is an exception between affixes, or has none in it."""
        rules, tokenizer, inner = self.tokenizer.rules, self.tokenizer, chunk
        before: list[str] = []
        behind: list[str] = []
        while inner and inner not in rules:
            prefix = tokenizer.find_prefix(inner)
            suffix = 0 if prefix and inner[prefix:] in rules else tokenizer.find_suffix(inner[prefix:])
            if suffix and inner[:-suffix] in rules:
                prefix = 0
            end = len(inner) - suffix
            if not (prefix or suffix) or prefix > end:
                break
            before += [inner[:prefix]] if prefix else []
            behind += [inner[end:]] if suffix else []
            inner = inner[prefix:end]
        if inner not in rules:
            return _texts(self.without(chunk))
        return [*before, *_texts(tokenizer(inner)), *reversed(behind)]


def _contains(tokens: list[str], part: list[str]) -> bool:
    return any(tokens[i : i + len(part)] == part for i in range(len(tokens) - len(part) + 1))


def _texts(doc: Any) -> list[str]:
    return [token.text for token in doc]
