"""Counts of a source's documents, in one pass that keeps no text but an even sample.

Up to `ALL_DOCUMENTS` all documents are read, in pieces, so counts of classes and equal texts are exact; of more an even part
is read. The trade-off: an exact count of 300,000 documents takes seconds, of ten million it would take minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ulmfit_dist.data.sources.base import Source, TextDataset
from ulmfit_dist.data.store_builder import text_hash

ALL_DOCUMENTS = 300_000
"""Documents of a source up to which all are read."""
ALL_CHARACTERS = 400_000_000
"""Characters of a source up to which all are read, by the length of the first documents."""
SAMPLE_DOCUMENTS = 20_000
SAMPLE_CHARACTERS = 20_000_000
"""Texts that are kept: an even part of the documents, within both limits."""
AT_ONCE = 500
"""Documents that are read at once."""


@dataclass
class SplitSurvey:
    """Counts of one split.

    Attributes:
        num_documents: all of them.
        labels: documents that were read, by label.
        num_unlabelled, num_empty, num_unreadable: of the documents that were read.
        label_of: label of each document that was read and has a text; None: none.
        hashes: uint64 of the same documents, equal for equal texts.
        words, characters: lengths of the same documents.
        sample: some of their texts, with their labels.
    """

    num_documents: int
    labels: Counter[str] = field(default_factory=Counter)
    num_unlabelled: int = 0
    num_empty: int = 0
    num_unreadable: int = 0
    label_of: list[str | None] = field(default_factory=list)
    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    words: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    characters: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    sample: list[tuple[str, str | None]] = field(default_factory=list)

    @property
    def num_read(self) -> int:
        """Documents that were read."""
        return len(self.label_of) + self.num_empty + self.num_unreadable

    @property
    def scale(self) -> float:
        """Documents of the split over those that were read."""
        return self.num_documents / max(self.num_read, 1)


@dataclass
class Survey:
    """Counts of all splits.

    Attributes:
        splits: by name, in the order of `SPLITS`.
        is_exact: whether all documents were read.
    """

    splits: dict[str, SplitSurvey]
    is_exact: bool

    @property
    def labels(self) -> Counter[str]:
        """Documents of all splits by label."""
        return sum((split.labels for split in self.splits.values()), Counter())

    @property
    def num_documents(self) -> int:
        return sum(split.num_documents for split in self.splits.values())

    @property
    def characters(self) -> float:
        """Characters of all documents, estimated where not all were read."""
        return sum(float(split.characters.sum()) * split.scale for split in self.splits.values())

    @property
    def sample(self) -> list[str]:
        """The texts that were kept, of all splits."""
        return [text for split in self.splits.values() for text, _ in split.sample]

    def num_equal(self) -> dict[str, int]:
        """Return documents whose text an earlier one of the same split has, and by pair of splits those of the first whose
        text is in the second."""
        counts = {}
        names = list(self.splits)
        for i, name in enumerate(names):
            hashes = self.splits[name].hashes
            counts[f"within {name}"] = len(hashes) - len(np.unique(hashes))
            for other in names[i + 1 :]:
                counts[f"{name} and {other}"] = int(np.isin(hashes, self.splits[other].hashes).sum())
        return {key: number for key, number in counts.items() if number}


def survey_source(source: Source) -> Survey:
    """Count a source's documents. Raises UserError for a document that cannot be read, unless they are skipped."""
    total = sum(len(documents) for documents in source.splits.values())
    length = _first_length(source)
    is_exact = total <= ALL_DOCUMENTS and total * length <= ALL_CHARACTERS
    most = total if is_exact else min(ALL_DOCUMENTS, int(ALL_CHARACTERS / max(length, 1)))
    kept = min(SAMPLE_DOCUMENTS, int(SAMPLE_CHARACTERS / max(length, 1)) + 1)
    splits = {
        name: _survey_split(documents, max(1, most // max(kept, 1)), max(1.0, total / max(most, 1)))
        for name, documents in source.splits.items()
    }
    return Survey(splits, is_exact)


def _first_length(source: Source) -> float:
    """Return the mean number of characters of the first documents."""
    documents = next(iter(source.splits.values()))
    texts, _ = documents.read(0, min(len(documents), AT_ONCE))
    lengths = [len(text) for text in texts if text is not None]
    return sum(lengths) / max(len(lengths), 1)


def _survey_split(documents: TextDataset, keep_every: int, read_every: float) -> SplitSurvey:
    found = SplitSurvey(len(documents))
    hashes, words, characters = list[int](), list[int](), list[int]()
    for start in _starts(len(documents), read_every):
        texts, labels = documents.read(start, min(len(documents), start + AT_ONCE))
        for text, label in zip(texts, labels, strict=True):
            number = found.num_read
            if text is None:
                found.num_unreadable += 1
                continue
            if label is None:
                found.num_unlabelled += 1
            else:
                found.labels[label] += 1
            if not text.strip():
                found.num_empty += 1
                continue
            found.label_of.append(label)
            hashes.append(text_hash(text))
            words.append(len(text.split()))
            characters.append(len(text))
            if number % keep_every == 0:
                found.sample.append((text, label))
    found.hashes = np.array(hashes, dtype=np.uint64)
    found.words, found.characters = np.array(words, dtype=np.int64), np.array(characters, dtype=np.int64)
    return found


def _starts(length: int, read_every: float) -> Iterator[int]:
    """Yield the first document of each piece that is read: one of `read_every` pieces, evenly."""
    number = 0.0
    while int(number) * AT_ONCE < length:
        yield int(number) * AT_ONCE
        number += read_every
