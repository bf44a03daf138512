"""Interface of all tokenizers: texts to ids, with a token table that is bounded in size.

Ids are local to a tokenizer and assigned in order of occurrence, not those of a vocabulary: a tokenizer needs no vocabulary,
so shards can be tokenized before it exists. Trade-off: ids are mapped once more when a shard is written.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from ulmfit_dist.utils.imports import import_path

Rule = Callable[[str], str]

TOKENS_KEPT = 600_000
"""Maximum number of distinct chunks or tokens before a tokenizer clears its tables: about 0.5 kB each."""


class Encoded(NamedTuple):
    """Encoded texts.

    Attributes:
        ids: ids of all texts, concatenated, uint32 [tokens].
        lengths: number of tokens of each text, int64 [texts].
    """

    ids: np.ndarray
    lengths: np.ndarray


class TextTokenizer(ABC):
    """Tokenizer that assigns ids in order of first occurrence."""

    @property
    @abstractmethod
    def tokens(self) -> list[str]:
        """Tokens by id, since the tables were last cleared."""

    @abstractmethod
    def encode(self, texts: Iterable[str]) -> Encoded:
        """Return texts as ids in `tokens`, which are valid until the next call. A full tokenizer clears its tables first."""

    @abstractmethod
    def encode_with_tokens(self, texts: Iterable[str]) -> tuple[Encoded, list[str]]:
        """Return texts as ids, and the token of each id. Thread-safe, unlike `encode`."""

    def tokenize(self, texts: Iterable[str]) -> list[list[str]]:
        """Return the tokens of each text. Thread-safe."""
        (ids, lengths), known = self.encode_with_tokens(texts)
        tokens = [known[i] for i in ids.tolist()]
        ends = np.cumsum(lengths).tolist()
        return [tokens[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]


def import_rule(path: str) -> Rule:
    """Import a function named as `module.function`. Raises UserError."""
    rule: Rule = import_path(path, "tokenizer.rules")
    return rule
