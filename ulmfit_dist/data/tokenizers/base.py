"""What every tokenizer is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ulmfit_dist.utils.imports import import_path

Rule = Callable[[str], str]

TOKENS_KEPT = 600_000
"""Distinct chunks, or tokens, after which a tokenizer starts anew, which bounds its memory: some 0.5 kB for each."""


class Encoded(NamedTuple):
    """Texts as ids: one flat array, uint32 [tokens], and the number of tokens of each, int64 [texts]."""

    ids: np.ndarray
    lengths: np.ndarray


class TextTokenizer(ABC):
    """Texts to tokens."""

    @property
    @abstractmethod
    def tokens(self) -> list[str]:
        """Token by id, of all that was encoded since the last start anew."""

    @abstractmethod
    def encode(self, texts: Iterable[str]) -> Encoded:
        """The texts as ids in `tokens`, as that is until the next call: a full tokenizer starts anew."""

    @abstractmethod
    def encode_with_tokens(self, texts: Iterable[str]) -> tuple[Encoded, list[str]]:
        """Return the texts as ids, and the token of each id. Safe in threads, which `encode` is not."""

    def tokenize(self, texts: Iterable[str]) -> list[list[str]]:
        """The tokens of each text, in order. Safe in threads."""
        (ids, lengths), known = self.encode_with_tokens(texts)
        tokens = [known[i] for i in ids.tolist()]
        ends = np.cumsum(lengths).tolist()
        return [tokens[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def import_rule(path: str) -> Rule:
    """A function named as `module.function`. Raises UserError where there is none."""
    rule: Rule = import_path(path, "tokenizer.rules")
    return rule
