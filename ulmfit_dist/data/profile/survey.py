"""Survey of a source: counts of documents, labels and equal texts, in one pass that keeps only a sample of the texts.

Up to `ALL_DOCUMENTS`, all documents are read, so counts are exact; of larger sources, evenly spaced parts. Trade-off: an
exact count of 300,000 documents takes seconds, of ten million it would take minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ulmfit_dist.data.sources.base import Source, TextDataset
from ulmfit_dist.data.store_builder import text_hash

ALL_DOCUMENTS = 300_000
"""Maximum number of documents that are all read."""
ALL_CHARACTERS = 400_000_000
"""Maximum number of characters that are all read, estimated from the first documents."""
SAMPLE_DOCUMENTS = 20_000
"""Maximum number of documents in the sample."""
SAMPLE_CHARACTERS = 20_000_000
"""Maximum number of characters in the sample."""
AT_ONCE = 500
"""Documents per read."""


@dataclass
class SplitSurvey:
    """Counts of one split.

    Attributes:
        num_documents: number of all documents.
        labels: number of documents read, by label.
        num_unlabelled, num_empty, num_unreadable: numbers of documents read.
        label_of: label of each document read that has a text; None for no label.
        hashes: text hashes of the same documents, uint64.
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
        """Number of documents read."""
        return len(self.label_of) + self.num_empty + self.num_unreadable

    @property
    def scale(self) -> float:
        """Ratio of all documents to documents read."""
        return self.num_documents / max(self.num_read, 1)


@dataclass
class Survey:
    """Counts of all splits.

    Attributes:
        splits: counts by split, in the order of `SPLITS`.
        is_exact: all documents were read.
    """

    splits: dict[str, SplitSurvey]
    is_exact: bool

    @property
    def labels(self) -> Counter[str]:
        """Number of documents of all splits, by label."""
        return sum((split.labels for split in self.splits.values()), Counter())

    @property
    def num_documents(self) -> int:
        return sum(split.num_documents for split in self.splits.values())

    @property
    def characters(self) -> float:
        """Number of characters of all documents, estimated if not all were read."""
        return sum(float(split.characters.sum()) * split.scale for split in self.splits.values())

    @property
    def sample(self) -> list[str]:
        """Sampled texts of all splits."""
        return [text for split in self.splits.values() for text, _ in split.sample]

    def num_equal(self) -> dict[str, int]:
        """Return the number of repeated texts within each split, and of texts of one split that are also in another."""
        counts = {}
        names = list(self.splits)
        for i, name in enumerate(names):
            hashes = self.splits[name].hashes
            counts[f"within {name}"] = len(hashes) - len(np.unique(hashes))
            for other in names[i + 1 :]:
                counts[f"{name} and {other}"] = int(np.isin(hashes, self.splits[other].hashes).sum())
        return {key: number for key, number in counts.items() if number}


def survey_source(source: Source) -> Survey:
    """Return the counts of a source. Raises UserError for an unreadable document, unless `data.on_error` is skip."""
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
    survey = SplitSurvey(len(documents))
    hashes, words, characters = list[int](), list[int](), list[int]()
    for start in _starts(len(documents), read_every):
        texts, labels = documents.read(start, min(len(documents), start + AT_ONCE))
        for text, label in zip(texts, labels, strict=True):
            number = survey.num_read
            if text is None:
                survey.num_unreadable += 1
                continue
            if label is None:
                survey.num_unlabelled += 1
            else:
                survey.labels[label] += 1
            if not text.strip():
                survey.num_empty += 1
                continue
            survey.label_of.append(label)
            hashes.append(text_hash(text))
            words.append(len(text.split()))
            characters.append(len(text))
            if number % keep_every == 0:
                survey.sample.append((text, label))
    survey.hashes = np.array(hashes, dtype=np.uint64)
    survey.words, survey.characters = np.array(words, dtype=np.int64), np.array(characters, dtype=np.int64)
    return survey


def _starts(length: int, read_every: float) -> Iterator[int]:
    """Yield the first document of each read: one of every `read_every` blocks of `AT_ONCE` documents."""
    number = 0.0
    while int(number) * AT_ONCE < length:
        yield int(number) * AT_ONCE
        number += read_every
