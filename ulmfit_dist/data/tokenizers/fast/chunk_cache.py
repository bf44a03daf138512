"""Chunk cache: the text between two spaces is tokenized once, then looked up.

In a corpus of reviews, 97 % of the chunks have occurred before. So a text is split at its spaces, and its ids are the
concatenated ids of its chunks. Most of fastai's rules, and spaCy's affixes and exceptions, depend only on the chunk. They
run on the new chunks of many texts at once, as the lines of one text (`lexicon.py`, `special_cases.py`). What depends on
more than one chunk is handled per text:

* HTML is cleaned before the text is split;
* runs of other white space, such as line breaks, which are tokens in spaCy, become separate chunks;
* texts in which two neighbouring words are equal may have repeated words (xxwrep), and are rewritten before they are split;
* so are texts in which a rule inserts a space after a line break, which becomes part of it.

Trade-off: memory for every distinct chunk.
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
"""Flags of a chunk: it is white space; it has repeated characters (xxrep); its result has the same word twice in a row;
fastai's rules insert a space before it; its tokens may depend on its neighbours."""


class ChunkTokenizer:
    """Tokenizer for fastai's default rules that caches the ids of chunks.

    Args:
        tokenizer: a `spacy.tokenizer.Tokenizer` with fastai's special tokens as exceptions.
        ids: ids of tokens.
    """

    def __init__(self, tokenizer: Any, ids: StringIndexer):
        self.tokenizer, self.ids = tokenizer, ids
        self.lexicon = WordTokenCache(tokenizer, ids)
        self._pairs = {tuple(ids.of(pair).tolist()) for pair in self.lexicon.special_cases.pairs}
        self._capitals = dict(zip(_CAPITALS, ids.of(_CAPITALS).tolist(), strict=True))
        self._chunks = StringIndexer()
        self._ids_of_chunks, self._flags = RaggedArray(np.uint32), GrowableArray(np.uint8)
        self._first_word, self._last_word, self._stem = (
            GrowableArray(np.int64),
            GrowableArray(np.int64),
            GrowableArray(np.int64),
        )
        self._edges: dict[int, tuple[int, int]] = {}

    def is_full(self, num_chunks: int) -> bool:
        """Return whether the cache has more than so many chunks."""
        return len(self._chunks) > num_chunks

    def encode(self, texts: Sequence[str]) -> list[np.ndarray | None]:
        """Return the ids of each text, uint32; None for a text that must be tokenized as a whole."""
        texts = list(map(rules.fix_html, texts))
        chunks, documents = self._look_up(list(map(space_out, texts)))
        rewritten = self._to_rewrite(chunks, documents)
        rewritten_texts = [rules.spec_add_spaces(rules.replace_wrep(rules.replace_rep(texts[i]))) for i in rewritten]
        more, rewritten_documents = self._look_up(list(map(space_out, rewritten_texts)))
        for i, document in zip(rewritten, rewritten_documents, strict=True):
            documents[i] = document + len(chunks)
        chunks = np.concatenate([chunks, more])
        indices, ends = _concatenate(documents)
        flags = self._flags[chunks][indices]
        unsure = {i for i in _documents_of(np.flatnonzero(flags & UNSURE), ends) if self._may_span(chunks[documents[i]])}
        repeats = _documents_of(np.flatnonzero(flags & REPEATS), ends)
        unsure.update(set(repeats).intersection(rewritten))  # a count such as 111 would be a repetition again
        ids, lengths = take_rows(*self._ids_of_chunks.get(chunks), indices)
        parts = np.split(ids, np.cumsum(lengths)[ends[:-1] - 1])
        return [None if i in unsure else part for i, part in enumerate(parts)]

    def _look_up(self, texts: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Return the numbers of the distinct chunks of texts, int64, and each text as indices in them, int32.

        Args:
            texts: texts with one space between chunks; new chunks are added to the cache.
        """
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
        """Return the documents in which fastai's rules, applied to the whole text, may insert xxwrep or change spaces."""
        indices, ends = _concatenate(documents)
        flags = self._flags[chunks][indices]
        glued = (flags[:-1] & SPACE != 0) & (flags[1:] & BEGINS_WITH_SPACE != 0)
        words = np.flatnonzero(flags & SPACE == 0)
        last, first, stem = (table[chunks][indices[words]] for table in (self._last_word, self._first_word, self._stem))
        repeated = (last[:-2] == first[1:-1]) & (first[1:-1] == stem[2:])
        doubled = np.flatnonzero(flags & DOUBLE)
        return _documents_of(np.concatenate([np.flatnonzero(glued), words[:-2][repeated], doubled]), ends)

    def _may_span(self, document: np.ndarray) -> bool:
        """Return whether an exception of spaCy may span a chunk that an exception has changed and one of its neighbours."""
        for i in np.flatnonzero(self._flags[document] & UNSURE).tolist():
            neighbours = document[i - 1 : i + 2].tolist()
            if neighbours[1] not in self._edges:
                return True
            if any((left[1], right[0]) in self._pairs for left, right in pairwise(map(self._edges_of, neighbours))):
                return True
        return False

    def _edges_of(self, chunk: int) -> tuple[int, int]:
        """Return the first and last token of a chunk, before spaCy's final search for exceptions."""
        ids, _ = self._ids_of_chunks.get(np.array([chunk]))
        return self._edges.get(chunk, (int(ids[0]), int(ids[-1])))

    def _learn_words(self, chunks: list[str]) -> None:
        """Add chunks without white space to the cache: apply fastai's rules, and look up the resulting words."""
        if not chunks:
            return
        numbers = self._chunks.of(chunks)
        text = rules.replace_rep("\n".join(chunks))
        lines = text.split("\n")
        flags = np.array([BEGINS_WITH_SPACE if line[0] in " /#\\" else 0 for line in lines], dtype=np.uint8)
        first, last = list(lines), list(lines)
        for i in [i for i, line in enumerate(lines) if " " in line]:
            parts = lines[i].split()
            first[i], last[i] = parts[0], parts[-1]
            flags[i] |= REPEATS | (DOUBLE if any(map(eq, parts, parts[1:])) else 0)
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
        flags[unsure] |= UNSURE
        self._flags.put(numbers, flags)
        for line in np.flatnonzero(unsure).tolist():
            self._learn_edges(int(numbers[line]), words[starts[line] : starts[line] + counts[line]], tokens.edges)

    def _learn_edges(self, chunk: int, words: list[str], edges: dict[str, tuple[str, str]]) -> None:
        """Store the edges of a chunk that spaCy's final search changes, if it is one word, with or without a capital."""
        if words[-1] in edges and (len(words) == 1 or (len(words) == 2 and words[0] in self._capitals)):
            first, last = self.ids.of(edges[words[-1]]).tolist()
            self._edges[chunk] = (self._capitals[words[0]] if len(words) == 2 else first), last

    def _learn_spaces(self, chunks: list[str]) -> None:
        """Add runs of white space to the cache, tokenized between two words."""
        for chunk in chunks:
            doc = self.tokenizer(f"{BOS}{chunk.replace('▁', ' ')}{BOS}")
            ids = self.ids.of([rules.replace_space(token.text) for token in doc[1:-1]])
            number = np.array([self._chunks[chunk]])
            self._ids_of_chunks.set(number, ids, np.array([len(ids)]))
            self._flags.put(number, np.array([SPACE]))


def _string_array(texts: list[str]) -> pa.LargeStringArray:
    """Return `pa.array(texts, pa.large_string())` without importing pandas, which `pa.array` does to check the type."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum(list(map(len, encoded)), out=offsets[1:])
    return pa.LargeStringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def _numbers(array: pa.Array) -> np.ndarray:
    """Return `array.to_numpy()`, for numbers without nulls, without importing pandas."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    if len(array) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def _hashes(strings: list[str]) -> np.ndarray:
    """Return a hash of each string, int64."""
    return np.fromiter(map(hash, strings), dtype=np.int64, count=len(strings))


def _concatenate(documents: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the concatenated documents, and the end of each."""
    return np.concatenate(documents), np.cumsum(list(map(len, documents)))


def _documents_of(positions: np.ndarray, ends: np.ndarray) -> list[int]:
    """Return the documents that contain these positions, each once."""
    documents: list[int] = np.unique(np.searchsorted(ends, positions, side="right")).tolist()
    return documents
