"""The making of a token store: shards with ids of their own, one vocabulary, shards with its ids.

A shard is first tokenized into ids by order of occurrence, with counts of its own, in files named `local-*`. When all are
there, their counts merge into the vocabulary, and each shard is mapped to its ids in one vectorized look-up. A shard whose
files are there is not made again. Nothing here knows of ranks: `stages/prepare.py` says who makes which shard, and when.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_dist.config import TokenizerConfig
from ulmfit_dist.data.sources import Source
from ulmfit_dist.data.store import NO_LABEL, shard_stem, token_dtype, write_bytes, write_json, write_shard
from ulmfit_dist.data.vocab import UNK_ID, add_counts, build_vocab, id_map, load_vocab, localize
from ulmfit_dist.progress import Progress


class StoreBuilder:
    """Makes a token store, step by step. Each step needs the one before, for all shards.

    Args:
        folder: where the store is to be; it exists.
        source: the documents.
        tokenizer: how they become tokens.
        shard_documents: documents in a shard.
    """

    def __init__(self, folder: Path, source: Source, tokenizer: TokenizerConfig, shard_documents: int):
        self.folder, self.source, self.tokenizer = folder, source, tokenizer
        self.shards = list(_cut(source, shard_documents))

    def tokenize(self, which: Iterable[int], shown: bool) -> None:
        """Tokenize the shards of these numbers that are missing, with a progress bar if `shown`.

        Raises:
            UserError: a document cannot be read, or a file not written.
        """
        missing = [i for i in which if not self._local(i).exists()]
        if not missing:
            return
        from ulmfit_dist.data.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_config(self.tokenizer)
        num_documents = sum(stop - start for i in missing for _, start, stop in self.shards[i])
        with Progress("tokenizing", num_documents, shown) as progress:
            for i in missing:
                texts, labels = self._read_shard(i)
                ids, lengths = tokenizer.encode(texts)
                local = localize(ids, tokenizer.tokens)
                offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
                write_bytes(self._local(i, ".tokens"), local.ids.tobytes())
                write_bytes(self._local(i, ".offsets"), offsets.tobytes())
                write_json(self._local(i), {"tokens": local.tokens, "counts": local.counts, "labels": labels})
                progress.advance(len(texts))

    def merge(self) -> None:
        """Write `vocab.json` from the counts of all shards, in the order of the documents, and the list of labels."""
        counts: Counter[str] = Counter()
        labels: set[str] = set()
        for i in range(len(self.shards)):
            local = self._read_local(i)
            add_counts(counts, local["tokens"], local["counts"])
            labels.update(label for label in local["labels"] if label is not None)
        write_json(self.folder / "vocab.json", build_vocab(counts, self.tokenizer.min_freq, self.tokenizer.max_vocab))
        write_json(self._labels_file, _sorted_labels(labels))

    def map(self, which: Iterable[int]) -> None:
        """Write the shards of these numbers with the ids of the vocabulary."""
        vocab = load_vocab(self.folder / "vocab.json")
        index: dict[str | None, int] = {name: i for i, name in enumerate(json.loads(self._labels_file.read_text("utf-8")))}
        index[None] = NO_LABEL
        for i in which:
            local = self._read_local(i)
            ids = np.fromfile(self._local(i, ".tokens"), dtype=np.uint32)
            offsets = np.fromfile(self._local(i, ".offsets"), dtype=np.int64)
            labels = np.array([index[label] for label in local["labels"]], dtype=np.int32)
            tokens = id_map(local["tokens"], vocab).astype(token_dtype(vocab))[ids]
            write_shard(self.folder / shard_stem(i, len(self.shards)), tokens, offsets, labels)

    def finish(self, identity: dict[str, Any]) -> None:
        """Write `meta.json`, with which the store is finished, and remove what was needed on the way."""
        vocab = load_vocab(self.folder / "vocab.json")
        dtype = token_dtype(vocab)
        splits, start = {}, 0
        for split, documents in self.source.splits.items():
            splits[split] = (start, start + len(documents))
            start += len(documents)
        num_shards = len(self.shards)
        shards = [np.fromfile(self.folder / f"{shard_stem(i, num_shards)}.tokens", dtype) for i in range(num_shards)]
        meta = {
            **identity,
            "fingerprint": self.folder.name,
            "num_documents": start,
            "num_tokens": sum(map(len, shards)),
            "num_unknown": sum(int((shard == UNK_ID).sum()) for shard in shards),
            "num_shards": num_shards,
            "dtype": str(dtype),
            "vocab_size": len(vocab),
            "splits": splits,
            "labels": json.loads(self._labels_file.read_text("utf-8")),
        }
        write_json(self.folder / "meta.json", meta)
        for leftover in self.folder.glob("local-*"):
            leftover.unlink()

    def _read_shard(self, i: int) -> tuple[list[str], list[str | None]]:
        texts: list[str] = []
        labels: list[str | None] = []
        for split, start, stop in self.shards[i]:
            more_texts, more_labels = self.source.splits[split].read(start, stop)
            texts += more_texts
            labels += more_labels
        return texts, labels

    @property
    def _labels_file(self) -> Path:
        return self.folder / "local-labels.json"

    def _local(self, i: int, ending: str = ".json") -> Path:
        """A file of a shard with ids of its own; the JSON file is written last."""
        return self.folder / f"local-{i:05d}{ending}"

    def _read_local(self, i: int) -> dict[str, Any]:
        return json.loads(self._local(i).read_text(encoding="utf-8"))


def _cut(source: Source, shard_documents: int) -> Iterator[list[tuple[str, int, int]]]:
    """The shards: each a list of (split, start, stop). They count documents through all splits, so one may span two."""
    pieces: list[tuple[str, int, int]] = []
    room = shard_documents
    for split, documents in source.splits.items():
        start = 0
        while start < len(documents):
            stop = min(start + room, len(documents))
            pieces.append((split, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield pieces
                pieces, room = [], shard_documents
    if pieces:
        yield pieces


def _sorted_labels(labels: set[str]) -> list[str]:
    """Labels in order: as numbers where all are numbers."""
    if all(re.fullmatch(r"-?[0-9]+", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
