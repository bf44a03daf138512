"""Cleaning of a corpus: documents that are too short, have too few letters, or repeat another one are dropped.

All rules see a document with its runs of white space reduced to single spaces, so equal documents meet the same rules.
Length and letters need one document only; duplicates need all: every rank hashes the documents of its shards, one rank
finds the repeated ones, and the first in the order of the source is kept. The result therefore does not depend on ranks
and workers. Trade-off: with `data.drop_duplicates` the texts are read twice, so that no duplicate is tokenized.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ulmfit_dist.config.schema import DataConfig

KEPT, SHORT, FEW_LETTERS, DUPLICATE = range(4)
"""Verdicts on a document."""
KEYS = {SHORT: "min_chars", FEW_LETTERS: "min_letter_share", DUPLICATE: "drop_duplicates"}
"""Key of `data` by the verdict that it causes."""
LETTER, SPACE = 1, 2
"""Classes of characters, other than 0."""
HASHED = np.dtype([("high", "<u8"), ("low", "<u8"), ("document", "<u8")])
"""Hash of a document, 128 bits, and its number in the source."""
SORTED_AT_ONCE = 4_000_000
"""Number of hashes that are sorted at once: about 250 MB."""


@dataclass(frozen=True)
class Cleaning:
    """Rules for documents, from `data`; by default every document is kept.

    Attributes:
        min_chars: minimum number of characters.
        min_letter_share: minimum share of letters and combining marks among the characters that are not white space.
        drop_duplicates: keep the first of equal documents only.
    """

    min_chars: int | None = None
    min_letter_share: float | None = None
    drop_duplicates: bool = False

    @classmethod
    def of(cls, data: DataConfig) -> Cleaning:
        """Return the rules of a config."""
        return cls(data.min_chars, data.min_letter_share, data.drop_duplicates)

    @property
    def identity(self) -> dict[str, Any]:
        """JSON-able values that the kept documents depend on; empty if all are kept."""
        rules = {key: value for key in KEYS.values() if (value := getattr(self, key)) not in (None, False)}
        unicode = {"unicode": unicodedata.unidata_version} if self.min_letter_share is not None else {}
        return {**rules, **unicode}

    def judge(self, texts: Sequence[str | None]) -> np.ndarray:
        """Return the verdict on each text by itself, uint8; one without a character, or None, is kept, and counted later."""
        if self.min_chars is None and self.min_letter_share is None:
            return np.full(len(texts), KEPT, dtype=np.uint8)
        return np.array([KEPT if text is None else self._judge(text) for text in texts], dtype=np.uint8)

    def _judge(self, text: str) -> int:
        normalized = normalize(text)
        if normalized and self.min_chars is not None and len(normalized) < self.min_chars:
            return SHORT
        if normalized and self.min_letter_share is not None and letter_share(normalized) < self.min_letter_share:
            return FEW_LETTERS
        return KEPT


def normalize(text: str) -> str:
    """Return a text with each run of white space as one space, and none at its ends."""
    return " ".join(text.split())


def letter_share(text: str) -> float:
    """Return the share of letters and combining marks (category M) among the characters that are not white space.

    Marks count because vowels of scripts such as Thai and Devanagari are marks.
    """
    classes = _character_classes()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")]
    counts = np.bincount(classes, minlength=3)
    return float(counts[LETTER] / max(counts[0] + counts[LETTER], 1))


@cache
def _character_classes() -> np.ndarray:
    """Return the class of each code point, uint8: a look-up in this table is many times as fast as `str.isalpha`."""
    classes = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    for code in range(len(classes)):
        character = chr(code)
        if character.isalpha() or unicodedata.category(character)[0] == "M":
            classes[code] = LETTER
        elif character.isspace():
            classes[code] = SPACE
    return classes


def hash_documents(texts: Sequence[str | None], verdicts: np.ndarray, first_document: int) -> np.ndarray:
    """Return the hashes of documents that are kept and have a character, `HASHED`.

    Args:
        first_document: number of the first text in the source.
    """
    rows = []
    for i, text in enumerate(texts):
        if text is not None and verdicts[i] == KEPT and (normalized := normalize(text)):
            digest = xxhash.xxh3_128_intdigest(normalized.encode("utf-8", "surrogatepass"))
            rows.append((digest >> 64, digest & (1 << 64) - 1, first_document + i))
    return np.array(rows, dtype=HASHED)


def find_duplicates(files: Iterable[Path], num_documents: int) -> np.ndarray:
    """Return the numbers of documents that have the hash of an earlier one, int64, ascending.

    Files are read once per part of the hashes, so memory is bounded by `SORTED_AT_ONCE`, whatever the size of the corpus.

    Args:
        files: hashes in the order of the source, as written from `hash_documents`.
        num_documents: maximum number of hashes.
    """
    files, num_parts = list(files), num_documents // SORTED_AT_ONCE + 1
    parts = [_repeated(_read_part(files, part, num_parts)) for part in range(num_parts)]
    return np.sort(np.concatenate(parts))


def _read_part(files: Sequence[Path], part: int, num_parts: int) -> np.ndarray:
    read = [np.zeros(0, dtype=HASHED)]
    for file in files:
        rows = np.fromfile(file, dtype=HASHED)
        read.append(rows[rows["high"] % num_parts == part])
    return np.concatenate(read)


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Return the documents whose hash is in an earlier row."""
    rows = rows[np.lexsort((rows["low"], rows["high"]))]  # stable: equal hashes stay in the order of the source
    is_repeated = (rows["high"][1:] == rows["high"][:-1]) & (rows["low"][1:] == rows["low"][:-1])
    documents: np.ndarray = rows["document"][1:][is_repeated].astype(np.int64)
    return documents


def describe_dropped(dropped: dict[str, int]) -> str:
    """Return a phrase with the number of documents that each rule dropped."""
    return ", ".join(f"{number:,} by data.{key}" for key, number in dropped.items())
