"""Word cache: tokens of words in lower case, with one call of spaCy per word shape.

Most new words have a known shape, so few texts reach spaCy. Trade-off: the shapes' equivalence must be proven from the
tokenizer's expressions (`word_shapes.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from ulmfit_dist.data.tokenizers.fast.ragged import take_rows
from ulmfit_dist.data.tokenizers.fast.special_cases import SpecialCases
from ulmfit_dist.data.tokenizers.fast.word_shapes import WordShapes, splits_a_run
from ulmfit_dist.data.vocab import StringIndexer


class Split(NamedTuple):
    """Split of a word into tokens.

    Attributes:
        bounds: begin of each token, and end of the last.
        before: bounds before spaCy's final search for exceptions, if it changed them.
        spans: the word may be part of an exception that contains a space.
    """

    bounds: tuple[int, ...]
    before: tuple[int, ...] | None = None
    spans: bool = False

    @property
    def is_unsure(self) -> bool:
        return self.spans or self.before is not None


class Tokens(NamedTuple):
    """Tokens of words.

    Attributes:
        ids: ids of all words, concatenated, uint32 [tokens].
        lengths: number of tokens of each word, int64 [words].
        unsure: mask of the words whose tokens may depend on neighbouring words, bool [words].
        edges: first and last token of an unsure word before spaCy's final search for exceptions, if known.
    """

    ids: np.ndarray
    lengths: np.ndarray
    unsure: np.ndarray
    edges: dict[str, tuple[str, str]]


class WordTokenCache:
    """Cache of the tokens of words, by shape.

    Args:
        tokenizer: a `spacy.tokenizer.Tokenizer`.
        ids: ids of tokens.
    """

    def __init__(self, tokenizer: Any, ids: StringIndexer):
        self.tokenizer, self.ids = tokenizer, ids
        self.special_cases, self.shapes = SpecialCases(tokenizer), WordShapes(tokenizer)
        self._splits: dict[str, Split | None] = {}  # by shape

    def look_up(self, words: Sequence[str]) -> Tokens:
        """Return the tokens of words, which must not contain white space."""
        numbers = StringIndexer()
        indices = numbers.of(words)
        distinct = list(numbers)
        splits = self._split(distinct)
        bounds = [split.bounds for split in splits]
        pieces = [word[i:j] for word, word_bounds in zip(distinct, bounds, strict=True) for i, j in pairwise(word_bounds)]
        ids = self.ids.of(pieces)
        lengths = np.array([len(split.bounds) - 1 for split in splits])
        unsure = np.array([split.is_unsure for split in splits])
        edges = {}
        for i in np.flatnonzero(unsure).tolist():
            word, before, spans = distinct[i], splits[i].before, splits[i].spans
            if before is not None and not spans:
                edges[word] = word[: before[1]], word[before[-2] :]
        return Tokens(*take_rows(ids.astype(np.uint32), lengths, indices), unsure[indices], edges)

    def _split(self, words: list[str]) -> list[Split]:
        """Return the splits of words, by shape; a word whose shape is not representative is split itself."""
        shapes = self.shapes(words)
        new = [shape for shape in dict.fromkeys(shapes) if shape not in self._splits]
        for shape, split in zip(new, self._split_as_lines(new), strict=True):
            self._splits[shape] = None if splits_a_run(shape, split.bounds) else split
        splits = [self._splits[shape] for shape in shapes]
        separate = self._split_as_lines([word for word, split in zip(words, splits, strict=True) if split is None])
        return [next(separate) if split is None else split for split in splits]

    def _split_as_lines(self, words: list[str]) -> Iterator[Split]:
        """Yield spaCy's splits of words, passed as the lines of one text to save its overhead per text."""
        if not words:
            return
        doc = self.tokenizer("\n".join(words))
        keys = doc.to_array("ORTH")
        breaks = np.flatnonzero(keys == self.tokenizer.vocab.strings["\n"])
        suspects = set(self._suspects(keys, breaks))
        lengths = doc.to_array("LENGTH").tolist()
        borders = [-1, *breaks.tolist(), len(keys)]
        for i, (line_break, stop) in enumerate(pairwise(borders)):
            bounds = _bounds(lengths[line_break + 1 : stop])
            if i not in suspects:
                yield Split(bounds)
                continue
            before = self.special_cases.tokens_before(words[i], _cut(words[i], bounds))
            yield Split(
                bounds,
                before=None if before is None else _bounds(map(len, before)),
                spans=self.special_cases.may_span(words[i]),
            )

    def _suspects(self, keys: np.ndarray, breaks: np.ndarray) -> Iterable[int]:
        """Return the indices of the lines that `special_cases` must check."""
        if self.special_cases.has_spanning:
            return range(len(breaks) + 1)
        positions = np.flatnonzero(np.isin(keys, self.special_cases.keys))
        lines: list[int] = np.searchsorted(breaks, positions).tolist()
        return lines


def _bounds(lengths: Iterable[int]) -> tuple[int, ...]:
    """Return the begin of each of consecutive pieces, given their lengths, and the end of the last."""
    return tuple(accumulate(lengths, initial=0))


def _cut(word: str, bounds: Sequence[int]) -> list[str]:
    return [word[start:stop] for start, stop in pairwise(bounds)]
