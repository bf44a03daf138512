"""Words in lower case and the ids of their tokens: each word is split once, and each shape of words by spaCy once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from ulmfit_dist.data.tokens.ragged import Growing, Ragged
from ulmfit_dist.data.tokens.special_cases import SpecialCases
from ulmfit_dist.data.tokens.word_shapes import WordShapes, splits_a_run
from ulmfit_dist.data.vocab import Numbers


class Split(NamedTuple):
    """How a word is split.

    Attributes:
        tokens: where its tokens are.
        before: where its tokens are before spaCy's second look for exceptions, if that changed them.
        spans: whether it may be part of an exception with a space in it.
    """

    tokens: list[slice]
    before: list[slice] | None = None
    spans: bool = False


class Lexicon:
    """Words and the ids of their tokens.

    Args:
        tokenizer: a `spacy.tokenizer.Tokenizer`.
        ids: the ids of tokens.

    Attributes:
        ids_of_words: by the number of a word, uint32.
        unsure: by the number of a word, whether its tokens may depend on the words around it.
        edges: by the number of an unsure word, its first and last token before spaCy's second look, if they are known.
    """

    def __init__(self, tokenizer: Any, ids: Numbers):
        self.tokenizer, self.ids = tokenizer, ids
        self.special_cases, self.shapes = SpecialCases(tokenizer), WordShapes(tokenizer)
        self.ids_of_words, self.unsure = Ragged(np.uint32), Growing(np.bool_)
        self.edges: dict[int, tuple[str, str]] = {}
        self._words = Numbers()
        self._splits: dict[str, Split | None] = {}  # by shape

    def look_up(self, words: Sequence[str]) -> np.ndarray:
        """The number of each word, int64; words not met before are learned. They have no white space in them."""
        known = len(self._words)
        numbers = self._words.of(words)
        new = self._words.since(known)
        if new:
            splits = self._split(new)
            tokens = [word[token] for word, split in zip(new, splits, strict=True) for token in split.tokens]
            lengths = np.array([len(split.tokens) for split in splits])
            places = np.arange(known, known + len(new))
            self.ids_of_words.set(places, self.ids.of(tokens), lengths)
            self.unsure.put(places, np.array([split.spans or split.before is not None for split in splits]))
            for i, (word, split) in enumerate(zip(new, splits, strict=True), start=known):
                if split.before is not None and not split.spans:
                    self.edges[i] = word[split.before[0]], word[split.before[-1]]
        return numbers

    def _split(self, words: list[str]) -> list[Split]:
        """Words by their shapes; by themselves where a shape does not speak for others."""
        shapes = self.shapes(words)
        new = [shape for shape in dict.fromkeys(shapes) if shape not in self._splits]
        for shape, split in zip(new, self._split_as_lines(new), strict=True):
            self._splits[shape] = None if splits_a_run(shape, [token.stop for token in split.tokens]) else split
        splits = [self._splits[shape] for shape in shapes]
        alone = self._split_as_lines([word for word, split in zip(words, splits, strict=True) if split is None])
        return [next(alone) if split is None else split for split in splits]

    def _split_as_lines(self, words: list[str]) -> Iterator[Split]:
        """Words as spaCy splits them, as the lines of one text: that spares its cost per text."""
        if not words:
            return
        doc = self.tokenizer("\n".join(words))
        keys, lengths = doc.to_array("ORTH"), doc.to_array("LENGTH").tolist()
        breaks = np.flatnonzero(keys == self.tokenizer.vocab.strings["\n"])
        suspects = set(self._suspects(keys, breaks))
        borders = [-1, *breaks.tolist(), len(keys)]
        for i, (behind, stop) in enumerate(pairwise(borders)):
            tokens = _slices(lengths[behind + 1 : stop])
            if i not in suspects:
                yield Split(tokens)
                continue
            before = self.special_cases.tokens_before(words[i], [words[i][token] for token in tokens])
            yield Split(
                tokens,
                before=None if before is None else _slices(map(len, before)),
                spans=self.special_cases.may_span(words[i]),
            )

    def _suspects(self, keys: np.ndarray, breaks: np.ndarray) -> Iterable[int]:
        """Numbers of the lines that `special_cases` must look at."""
        if self.special_cases.has_spanning:
            return range(len(breaks) + 1)
        places = np.flatnonzero(np.isin(keys, self.special_cases.keys))
        return np.searchsorted(breaks, places).tolist()


def _slices(lengths: Iterable[int]) -> list[slice]:
    """Where pieces of these lengths are, one behind the other."""
    return [slice(start, stop) for start, stop in pairwise(accumulate(lengths, initial=0))]
