"""Shards of a source: equal numbers of documents, read with the verdict of `data/cleaning.py` on each.

A shard is known by its number and its documents by theirs, whatever rank or worker reads it. If duplicates are dropped, the
hashes of each shard and the list of all duplicates are files `local-*` in the folder of the token store, so an interrupted
run reuses them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ulmfit_dist.data.cleaning import DUPLICATE, KEPT, Cleaning, find_duplicates, hash_documents
from ulmfit_dist.data.sources.base import Source
from ulmfit_dist.utils.files import write_bytes


class ShardTexts(NamedTuple):
    """Documents of a shard.

    Attributes:
        texts: None for a document that cannot be read and is skipped.
        labels: None for a document without a label.
        splits: names of the documents' splits.
        verdicts: verdict of the cleaning on each, uint8.
    """

    texts: list[str | None]
    labels: list[str | None]
    splits: list[str]
    verdicts: np.ndarray

    @property
    def kept(self) -> dict[int, str]:
        """Readable texts that the cleaning keeps, by their index in the shard."""
        return {i: text for i, text in enumerate(self.texts) if text is not None and self.verdicts[i] == KEPT}


class SourceShards:
    """Documents of a source by shard.

    Args:
        folder: folder of the token store, for hashes of documents.
        source: source of the documents.
        documents_per_shard: documents in a shard.
        cleaning: rules that drop documents, except those of the test split.
    """

    def __init__(self, folder: Path, source: Source, documents_per_shard: int, cleaning: Cleaning):
        self.folder, self.source, self.cleaning = folder, source, cleaning
        self._slices = list(_cut(source, documents_per_shard))

    def __len__(self) -> int:
        return len(self._slices)

    def num_documents(self, i: int) -> int:
        """Return the number of documents of a shard, empty and dropped ones included."""
        return sum(stop - start for _, start, stop in self._slices[i])

    def is_test(self, i: int) -> bool:
        """Return whether a shard is of the test split, which shares none with the others."""
        return self._slices[i][0][0] == "test"

    def read(self, i: int, most: int | None = None) -> ShardTexts:
        """Return the documents of a shard, or the first `most` of them. With `drop_duplicates`, these must be known.

        Raises:
            UserError: a document cannot be read.
        """
        texts, labels, splits = self._read(i, most)
        verdicts = self._judge(i, texts)
        if self.cleaning.drop_duplicates and not self.is_test(i):
            first = self._first_documents[i]
            begin, end = np.searchsorted(self._duplicates, [first, first + len(texts)])
            verdicts[self._duplicates[begin:end] - first] = DUPLICATE
        return ShardTexts(texts, labels, splits, verdicts)

    def sample(self, num_documents: int) -> Iterator[str]:
        """Yield the texts of about `num_documents` documents, equally many per shard, without the test split."""
        sampled = [i for i in range(len(self)) if not self.is_test(i)]
        for i in sampled:
            yield from self.read(i, math.ceil(num_documents / len(sampled))).kept.values()

    def unhashed(self) -> list[int]:
        """Return the shards to hash before duplicates can be dropped; none if they are known, or kept."""
        if not self.cleaning.drop_duplicates or self._duplicates_file.exists():
            return []
        return [i for i in range(len(self)) if not self.is_test(i) and not self._hashes(i).exists()]

    def hash_shard(self, i: int) -> None:
        """Write the hashes of a shard's documents. Raises UserError if one cannot be read, or the file not written."""
        texts, _, _ = self._read(i)
        write_bytes(self._hashes(i), hash_documents(texts, self._judge(i, texts), self._first_documents[i]).tobytes())

    def find_duplicates(self) -> None:
        """Write the numbers of all duplicates from the hashes of all shards, if duplicates are dropped. Raises UserError."""
        if self.cleaning.drop_duplicates and not self._duplicates_file.exists():
            hashed = [i for i in range(len(self)) if not self.is_test(i)]
            duplicates = find_duplicates(map(self._hashes, hashed), sum(map(self.num_documents, hashed)))
            write_bytes(self._duplicates_file, duplicates.tobytes())

    def _read(self, i: int, most: int | None = None) -> tuple[list[str | None], list[str | None], list[str]]:
        texts: list[str | None] = []
        labels: list[str | None] = []
        splits: list[str] = []
        for split, start, stop in self._slices[i]:
            end = stop if most is None else min(stop, start + most - len(texts))
            more_texts, more_labels = self.source.splits[split].read(start, end)
            texts += more_texts
            labels += more_labels
            splits += [split] * len(more_texts)
        return texts, labels, splits

    def _judge(self, i: int, texts: list[str | None]) -> np.ndarray:
        """Return the verdict on each text by itself, uint8."""
        return np.full(len(texts), KEPT, dtype=np.uint8) if self.is_test(i) else self.cleaning.judge(texts)

    @cached_property
    def _first_documents(self) -> list[int]:
        """Number of each shard's first document in the source."""
        return list(accumulate(map(self.num_documents, range(len(self))), initial=0))

    @cached_property
    def _duplicates(self) -> np.ndarray:
        return np.fromfile(self._duplicates_file, dtype=np.int64)

    @property
    def _duplicates_file(self) -> Path:
        return self.folder / "local-duplicates"

    def _hashes(self, i: int) -> Path:
        return self.folder / f"local-{i:05d}.documents"


def _cut(source: Source, documents_per_shard: int) -> Iterator[list[tuple[str, int, int]]]:
    """Yield the shards, each a list of (split, start, stop). A shard may span two splits.

    Only the test split, which must not affect the vocabulary, has separate shards.
    """
    pieces: list[tuple[str, int, int]] = []
    room = documents_per_shard
    for split, documents in source.splits.items():
        start = 0
        if split == "test" and pieces:
            yield pieces
            pieces, room = [], documents_per_shard
        while start < len(documents):
            stop = min(start + room, len(documents))
            pieces.append((split, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield pieces
                pieces, room = [], documents_per_shard
    if pieces:
        yield pieces
