"""Words in lower case and the ids of their tokens: each shape of words is split by spaCy once."""

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
    """How a word is split.

    Attributes:
        bounds: where its tokens begin, and where the last ends.
        before: the same before spaCy's second look for exceptions, if that changed them.
        spans: whether it may be part of an exception with a space in it.
    """

    bounds: tuple[int, ...]
    before: tuple[int, ...] | None = None
    spans: bool = False

    @property
    def is_unsure(self) -> bool:
        return self.spans or self.before is not None


class Tokens(NamedTuple):
    """The tokens of words.

    Attributes:
        ids: of all words, one after another, uint32.
        lengths: how many each word has, int64 [words].
        unsure: of each word, whether its tokens may depend on the words around it, bool [words].
        edges: of an unsure word, its first and last token before spaCy's second look, if they are known.
    """

    ids: np.ndarray
    lengths: np.ndarray
    unsure: np.ndarray
    edges: dict[str, tuple[str, str]]


class WordTokenCache:
    """Words to the ids of their tokens.

    Args:
        tokenizer: a `spacy.tokenizer.Tokenizer`.
        ids: the ids of tokens.
    """

    def __init__(self, tokenizer: Any, ids: StringIndexer):
        self.tokenizer, self.ids = tokenizer, ids
        self.special_cases, self.shapes = SpecialCases(tokenizer), WordShapes(tokenizer)
        self._splits: dict[str, Split | None] = {}  # by shape

    def look_up(self, words: Sequence[str]) -> Tokens:
        """The tokens of words without white space in them."""
        numbers = StringIndexer()
        places = numbers.of(words)
        distinct = list(numbers)
        splits = self._split(distinct)
        bounds = [split.bounds for split in splits]
        pieces = [word[i:j] for word, places_of in zip(distinct, bounds, strict=True) for i, j in pairwise(places_of)]
        ids = self.ids.of(pieces)
        lengths = np.array([len(split.bounds) - 1 for split in splits])
        unsure = np.array([split.is_unsure for split in splits])
        edges = {}
        for i in np.flatnonzero(unsure).tolist():
            word, before, spans = distinct[i], splits[i].before, splits[i].spans
            if before is not None and not spans:
                edges[word] = word[: before[1]], word[before[-2] :]
        return Tokens(*take_rows(ids.astype(np.uint32), lengths, places), unsure[places], edges)

    def _split(self, words: list[str]) -> list[Split]:
        """Words by their shapes; by themselves where a shape does not speak for others."""
        shapes = self.shapes(words)
        new = [shape for shape in dict.fromkeys(shapes) if shape not in self._splits]
        for shape, split in zip(new, self._split_as_lines(new), strict=True):
            self._splits[shape] = None if splits_a_run(shape, split.bounds) else split
        splits = [self._splits[shape] for shape in shapes]
        alone = self._split_as_lines([word for word, split in zip(words, splits, strict=True) if split is None])
        return [next(alone) if split is None else split for split in splits]

    def _split_as_lines(self, words: list[str]) -> Iterator[Split]:
        """Words as spaCy splits them, as the lines of one text: that spares its cost per text."""
        if not words:
            return
        doc = self.tokenizer("\n".join(words))
        keys = doc.to_array("ORTH")
        breaks = np.flatnonzero(keys == self.tokenizer.vocab.strings["\n"])
        suspects = set(self._suspects(keys, breaks))
        lengths = doc.to_array("LENGTH").tolist()
        borders = [-1, *breaks.tolist(), len(keys)]
        for i, (behind, stop) in enumerate(pairwise(borders)):
            bounds = _bounds(lengths[behind + 1 : stop])
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
        """Numbers of the lines that `special_cases` must look at."""
        if self.special_cases.has_spanning:
            return range(len(breaks) + 1)
        places = np.flatnonzero(np.isin(keys, self.special_cases.keys))
        return np.searchsorted(breaks, places).tolist()


def _bounds(lengths: Iterable[int]) -> tuple[int, ...]:
    """Where pieces of these lengths begin, one behind the other, and where the last ends."""
    return tuple(accumulate(lengths, initial=0))


def _cut(word: str, bounds: Sequence[int]) -> list[str]:
    return [word[start:stop] for start, stop in pairwise(bounds)]
