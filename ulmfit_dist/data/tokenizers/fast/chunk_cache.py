"""Tokenizing by chunks: what stands between two spaces is tokenized once, and looked up ever after.

97 % of the chunks of a corpus of reviews were seen before. So a text is cut at its spaces, and its ids are those of its
chunks, joined. Most of fastai's rules, and spaCy's affixes and exceptions, depend on the chunk alone, and are run over the
new chunks of many texts at once, as the lines of one text (`lexicon.py`, `special_cases.py`). What depends on more than a
chunk is seen to for each text:

* HTML is mended before the text is cut;
* runs of other white space, such as line breaks, which to spaCy are tokens, are set apart as chunks of their own;
* repeated words (xxwrep) are looked for where two neighbours are equal, and such texts are rewritten before they are cut;
* so are texts where a rule puts a space behind a line break, which becomes part of it.

The price is memory for every distinct chunk.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from operator import eq
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ulmfit_dist.data.tokenizers import rules
from ulmfit_dist.data.tokenizers.fast.lexicon import WordTokenCache
from ulmfit_dist.data.tokenizers.fast.ragged import GrowableArray, RaggedArray, take_rows
from ulmfit_dist.data.tokenizers.fast.whitespace import space_out
from ulmfit_dist.data.tokenizers.rules import BOS, TK_MAJ, TK_UP
from ulmfit_dist.data.vocab import StringIndexer

_CAPITALS = (TK_MAJ, TK_UP)
_STEMS = re.compile(r"^ ?(\w*)", re.MULTILINE)

SPACE, REPEATS, DOUBLE, BEGINS_WITH_SPACE, UNSURE = 1, 2, 4, 8, 16
"""What is known of a chunk: it is white space; repeated characters were found in it (xxrep); a word stands twice in what
came of that; fastai's rules put a space before it; its tokens may depend on its neighbours."""


class ChunkTokenizer:
    """Texts to ids with fastai's default rules, by chunks.

    Args:
        tokenizer: a `spacy.tokenizer.Tokenizer` that knows fastai's special tokens.
        ids: the ids of tokens.
    """

    def __init__(self, tokenizer: Any, ids: StringIndexer):
        self.tokenizer, self.ids = tokenizer, ids
        self.lexicon = WordTokenCache(tokenizer, ids)
        self._pairs = {tuple(ids.of(pair).tolist()) for pair in self.lexicon.special_cases.pairs}
        self._capitals = dict(zip(_CAPITALS, ids.of(_CAPITALS).tolist(), strict=True))
        self._chunks = StringIndexer()
        self._ids_of_chunks, self._facts = RaggedArray(np.uint32), GrowableArray(np.uint8)
        self._first_word, self._last_word, self._stem = (
            GrowableArray(np.int64),
            GrowableArray(np.int64),
            GrowableArray(np.int64),
        )
        self._edges: dict[int, tuple[int, int]] = {}

    def is_full(self, num_chunks: int) -> bool:
        return len(self._chunks) > num_chunks

    def encode(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """The ids of each text, uint32; None for a text that must be tokenized as a whole."""
        texts = list(map(rules.fix_html, texts))
        chunks, documents = self._look_up(list(map(space_out, texts)))
        rewritten = self._to_rewrite(chunks, documents)
        again = [rules.spec_add_spaces(rules.replace_wrep(rules.replace_rep(texts[i]))) for i in rewritten]
        more, rewritings = self._look_up(list(map(space_out, again)))
        for i, rewriting in zip(rewritten, rewritings, strict=True):
            documents[i] = rewriting + len(chunks)
        chunks = np.concatenate([chunks, more])
        places, ends = _joined(documents)
        facts = self._facts[chunks][places]
        unsure = {i for i in _documents_of(np.flatnonzero(facts & UNSURE), ends) if self._meet(chunks[documents[i]])}
        repeats = _documents_of(np.flatnonzero(facts & REPEATS), ends)
        unsure.update(set(repeats).intersection(rewritten))  # a count such as 111, which is no repetition
        ids, lengths = take_rows(*self._ids_of_chunks.get(chunks), places)
        parts = np.split(ids, np.cumsum(lengths)[ends[:-1] - 1])
        return [None if i in unsure else part for i, part in enumerate(parts)]

    def _look_up(self, texts: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """The numbers of the distinct chunks of texts in which one space parts them, int64, learned if they are new; and of
        each text where its chunks are among them, int32."""
        known = len(self._chunks)
        documents = pc.split_pattern(_string_array(texts), " ")
        parts = documents.values.dictionary_encode()
        chunks = self._chunks.of(parts.dictionary.to_pylist())
        new = self._chunks.since(known)
        spaces = [chunk for chunk in new if chunk[0].isspace()]
        self._learn_spaces(spaces)
        self._learn_words([chunk for chunk in new if not chunk[0].isspace()] if spaces else new)
        return chunks, np.split(_numbers(parts.indices), _numbers(documents.offsets)[1:-1])[: len(texts)]

    def _to_rewrite(self, chunks: np.ndarray, documents: list[np.ndarray]) -> list[int]:
        """Documents where xxwrep may come in, or the white space changes, when fastai's rules see the whole of it."""
        places, ends = _joined(documents)
        facts = self._facts[chunks][places]
        glued = (facts[:-1] & SPACE != 0) & (facts[1:] & BEGINS_WITH_SPACE != 0)
        words = np.flatnonzero(facts & SPACE == 0)
        last, first, stem = (table[chunks][places[words]] for table in (self._last_word, self._first_word, self._stem))
        repeated = (last[:-2] == first[1:-1]) & (first[1:-1] == stem[2:])
        doubled = np.flatnonzero(facts & DOUBLE)
        return _documents_of(np.concatenate([np.flatnonzero(glued), words[:-2][repeated], doubled]), ends)

    def _meet(self, document: np.ndarray) -> bool:
        """Whether an exception of spaCy may run from a chunk that it has changed into one beside it."""
        for place in np.flatnonzero(self._facts[document] & UNSURE).tolist():
            around = document[place - 1 : place + 2].tolist()
            if around[1] not in self._edges:
                return True
            if any((left[1], right[0]) in self._pairs for left, right in pairwise(map(self._edges_of, around))):
                return True
        return False

    def _edges_of(self, chunk: int) -> tuple[int, int]:
        """The first and last token of a chunk, before spaCy's second look if that has changed it."""
        ids, _ = self._ids_of_chunks.get(np.array([chunk]))
        return self._edges.get(chunk, (int(ids[0]), int(ids[-1])))

    def _learn_words(self, chunks: list[str]) -> None:
        """Run fastai's rules over chunks without white space, and look up the words that come out."""
        if not chunks:
            return
        numbers = self._chunks.of(chunks)
        text = rules.replace_rep("\n".join(chunks))
        lines = text.split("\n")
        facts = np.array([BEGINS_WITH_SPACE if line[0] in " /#\\" else 0 for line in lines], dtype=np.uint8)
        first, last = list(lines), list(lines)
        for i in [i for i, line in enumerate(lines) if " " in line]:
            parts = lines[i].split()
            first[i], last[i] = parts[0], parts[-1]
            facts[i] |= REPEATS | (DOUBLE if any(map(eq, parts, parts[1:])) else 0)
        self._first_word.put(numbers, _hashes(first))
        self._last_word.put(numbers, _hashes(last))
        self._stem.put(numbers, _hashes(_STEMS.findall(text)))
        text = rules.replace_maj(rules.replace_all_caps(rules.spec_add_spaces(text))).lower()
        counts = np.array([len(line.split()) if " " in line else 1 for line in text.split("\n")])
        words = text.split()
        tokens = self.lexicon.look_up(words)
        starts = np.cumsum(counts) - counts
        self._ids_of_chunks.set(numbers, tokens.ids, np.add.reduceat(tokens.lengths, starts))
        unsure = np.logical_or.reduceat(tokens.unsure, starts)
        facts[unsure] |= UNSURE
        self._facts.put(numbers, facts)
        for line in np.flatnonzero(unsure).tolist():
            self._learn_edges(int(numbers[line]), words[starts[line] : starts[line] + counts[line]], tokens.edges)

    def _learn_edges(self, chunk: int, words: list[str], edges: dict[str, tuple[str, str]]) -> None:
        """Keep the edges of a chunk that spaCy's second look changes, if it is one word or one with a capital letter."""
        if words[-1] in edges and (len(words) == 1 or (len(words) == 2 and words[0] in self._capitals)):
            first, last = self.ids.of(edges[words[-1]]).tolist()
            self._edges[chunk] = (self._capitals[words[0]] if len(words) == 2 else first), last

    def _learn_spaces(self, chunks: list[str]) -> None:
        """Tokenize runs of white space, as they stand between two words."""
        for chunk in chunks:
            doc = self.tokenizer(f"{BOS}{chunk.replace('▁', ' ')}{BOS}")
            ids = self.ids.of([rules.replace_space(token.text) for token in doc[1:-1]])
            number = np.array([self._chunks[chunk]])
            self._ids_of_chunks.set(number, ids, np.array([len(ids)]))
            self._facts.put(number, np.array([SPACE]))


def _string_array(texts: list[str]) -> pa.LargeStringArray:
    """Return `pa.array(texts, pa.large_string())`, which would import pandas to find out that a list is none of its own."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(list(map(len, encoded)), out=offsets[1:])
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def _numbers(array: pa.Array) -> np.ndarray:
    """Return `array.to_numpy()` of numbers without nulls, without the import of pandas that belongs to it."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    if len(array) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def _hashes(strings: list[str]) -> np.ndarray:
    """A number for each string, the same for equal ones, int64."""
    return np.fromiter(map(hash, strings), dtype=np.int64, count=len(strings))


def _joined(documents: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Documents one after another, and where each ends."""
    return np.concatenate(documents), np.cumsum(list(map(len, documents)))


def _documents_of(places: np.ndarray, ends: np.ndarray) -> list[int]:
    """The documents in which places lie, each once."""
    return np.unique(np.searchsorted(ends, places, side="right")).tolist()
