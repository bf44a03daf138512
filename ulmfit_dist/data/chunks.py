"""Tokenizing by chunks: what stands between two spaces is tokenized once, and looked up ever after.

97 % of the chunks of a corpus of reviews were seen before. So a text is cut at its spaces, and its ids are those of its
chunks, joined. What fastai's rules and spaCy do beyond a chunk is done to the text before it is cut:

* HTML and spaces around / and # as fastai does them;
* repeated characters and words (xxrep, xxwrep), only where a cheap test finds that there may be some;
* runs of other white space, such as line breaks, which to spaCy are tokens: they are set apart as chunks of their own.

Capital letters, lower case and spaCy's affixes and exceptions depend on the chunk alone; chunks not seen before are run
through them together, as the lines of one text, which spares spaCy's cost per text. (But see `special_cases.py`.)

The price is memory for every distinct chunk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, filterfalse
from operator import eq
from typing import Any

import numpy as np
from fastai.text import core
from fastai.text.core import BOS, TK_MAJ, TK_UP

from ulmfit_dist.data.special_cases import SpecialCases
from ulmfit_dist.data.vocab import TokenIds

_SPACES = re.compile(" {2,}")
_OTHER_SPACE = re.compile(r" ?([^\S ]\s*)")
_TRIPLE = re.compile(r"(\S)\1\1")


class ChunkTokenizer:
    """Texts to ids with fastai's default rules, by chunks.

    Args:
        tokenizer: a `spacy.tokenizer.Tokenizer` that knows fastai's special tokens.
        ids: gives out ids.
    """

    def __init__(self, tokenizer: Any, ids: TokenIds):
        self.tokenizer, self.ids = tokenizer, ids
        self.special_cases = SpecialCases(tokenizer)
        self.begin = ids.encode([BOS])
        self.capitals = {"": b"", TK_MAJ: ids.encode([TK_MAJ]), TK_UP: ids.encode([TK_UP])}
        self.known: dict[str, bytes] = {}
        self.lower: dict[str, bytes] = {}
        self.tripled: set[str] = set()
        self.unsure: set[str] = set()
        self.unsure_lower: set[str] = set()

    def is_full(self, num_chunks: int) -> bool:
        return len(self.known) > num_chunks

    def encode(self, texts: Sequence[str]) -> list[bytes | None]:
        """The ids of each text; None for a text that must be tokenized as a whole."""
        texts = [core.fix_html(text) for text in texts]
        documents = [_cut(text) for text in texts]
        self._learn(documents)
        self._rewrite(texts, documents, list(map(self._has_triple, texts, documents)), core.replace_rep)
        self._rewrite(texts, documents, list(map(_may_repeat_words, texts, documents)), core.replace_wrep)
        look_up, unsure = self.known.__getitem__, self.unsure
        return [self.begin + b"".join(map(look_up, chunks)) if unsure.isdisjoint(chunks) else None for chunks in documents]

    def _has_triple(self, text: str, chunks: list[str]) -> bool:
        """Whether xxrep comes in. Those of / # and \\ are looked for in the text: the chunks have them one by one."""
        return not self.tripled.isdisjoint(chunks) or "///" in text or "###" in text or "\\\\\\" in text

    def _rewrite(self, texts: list[str], documents: list[list[str]], which: list[bool], rule: Callable[[str], str]) -> None:
        """Put what a rule makes of some texts in their places, and learn their chunks."""
        rewritten = [i for i, chosen in enumerate(which) if chosen]
        for i in rewritten:
            texts[i] = rule(texts[i])
            documents[i] = _cut(texts[i])
        self._learn(documents[i] for i in rewritten)

    def _learn(self, documents: Iterable[list[str]]) -> None:
        """Tokenize the chunks that are not known."""
        new = set(filterfalse(self.known.__contains__, chain.from_iterable(documents)))
        spaces = {chunk for chunk in new if chunk[0].isspace()}
        self._learn_words(list(new - spaces))
        for space in spaces:
            self.known[space] = self.ids.encode(self._tokenize_space(space))

    def _learn_words(self, words: list[str]) -> None:
        """Learn words, each of which is its lower case and what its capital letters become before it."""
        if not words:
            return
        self.tripled.update(filter(_TRIPLE.search, words))
        lines = core.replace_maj(core.replace_all_caps("\n".join(words))).lower().split("\n")
        parted = [line.rpartition(" ") for line in lines]
        self._learn_lower(list({lower for _, _, lower in parted if lower not in self.lower}))
        for word, (capital, _, lower) in zip(words, parted, strict=True):
            self.known[word] = self.capitals[capital] + self.lower[lower]
            if lower in self.unsure_lower:
                self.unsure.add(word)

    def _learn_lower(self, words: list[str]) -> None:
        """Tokenize words in lower case as the lines of one text."""
        if not words:
            return
        doc = self.tokenizer("\n".join(words))
        keys = doc.to_array("ORTH")
        ids = self._ids_of(keys)
        breaks = np.flatnonzero(keys == self.tokenizer.vocab.strings["\n"])
        begins, ends = [0, *(breaks + 1).tolist()], [*breaks.tolist(), len(keys)]
        for word, begin, end in zip(words, begins, ends, strict=True):
            self.lower[word] = ids[begin * TokenIds.itemsize : end * TokenIds.itemsize]
        for i in self._suspects(keys, breaks):
            if self.special_cases.may_reach_over(words[i], [token.text for token in doc[begins[i] : ends[i]]]):
                self.unsure_lower.add(words[i])

    def _ids_of(self, keys: np.ndarray) -> bytes:
        """Ids of tokens given by spaCy's keys, made without a Python object for each."""
        unique, places = np.unique(keys, return_inverse=True)
        strings = [self.tokenizer.vocab.strings[key] for key in unique.tolist()]
        return np.frombuffer(self.ids.encode(strings), dtype=np.uint32)[places].tobytes()

    def _suspects(self, keys: np.ndarray, breaks: np.ndarray) -> Iterable[int]:
        """Numbers of the lines that `special_cases` must look at."""
        if self.special_cases.has_spanning:
            return range(len(breaks) + 1)
        places = np.flatnonzero(np.isin(keys, self.special_cases.keys))
        return np.unique(np.searchsorted(breaks, places)).tolist()

    def _tokenize_space(self, space: str) -> list[str]:
        """The tokens of a run of white space between two words, as `_set_apart` made it."""
        doc = self.tokenizer(f"{BOS}{space.replace('▁', ' ')}{BOS}")
        return [core.replace_space(token.text) for token in doc[1:-1]]


def _may_repeat_words(text: str, chunks: list[str]) -> bool:
    """Whether xxwrep may come in: for a word three times on end there must be two."""
    words = chunks if text.isprintable() else text.split()
    return any(map(eq, words, words[1:]))


def _cut(text: str) -> list[str]:
    """The chunks of a text. A run of white space other than single spaces is a chunk, its spaces written as ▁."""
    if "/" in text or "#" in text or "\\" in text:
        text = core.spec_add_spaces(text)
    if text.isprintable():  # then no white space but the space itself is in it
        return text.split()
    text = _OTHER_SPACE.sub(_set_apart, _SPACES.sub(" ", text).strip())
    return text.split(" ") if text else []


def _set_apart(run: re.Match[str]) -> str:
    """spaCy takes a space before other white space as the end of the word, and what follows as a token."""
    return f" {run[1].replace(' ', '▁')} "
