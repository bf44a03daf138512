"""Token store builder: tokenize shards with local ids, merge the vocabulary, map shards to its ids.

A shard is first tokenized into local ids, in order of occurrence, with local counts, in files named `local-*`. When all
shards exist, their counts are merged into the vocabulary, and each shard is mapped to its ids in one vectorized look-up. A
shard whose files exist is not tokenized again. Trade-off: tokens are written twice. The builder does not know about ranks:
`stages/prepare.py` decides which rank builds which shard, and when.
"""

from __future__ import annotations

import gc
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from ulmfit_dist.config.schema import TokenizerConfig
from ulmfit_dist.data.cleaning import KEYS, Cleaning, describe_dropped
from ulmfit_dist.data.shards import SourceShards
from ulmfit_dist.data.sources.base import Source
from ulmfit_dist.data.token_store import MODEL_FILE, NO_LABEL, shard_checksum, shard_stem, token_dtype, write_shard
from ulmfit_dist.data.vocab import UNK_ID, build_vocab, id_map, known_tokens, load_vocab, localize
from ulmfit_dist.data.vocab_merge import frequent_tokens
from ulmfit_dist.data.worker_pool import run_in_workers
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import write_bytes, write_json, write_table
from ulmfit_dist.utils.progress import Progress

if TYPE_CHECKING:
    from ulmfit_dist.data.tokenizers.base import TextTokenizer

DOCUMENTS_PER_WORKER = 20_000
"""Minimum number of documents per worker: with fewer, starting a process takes longer than it saves."""
EMPTY = 1
"""Tokens of a document without a word: only xxbos. Such documents are left out."""


class Indices(NamedTuple):
    """Vocabulary and labels of a store, for mapping local ids.

    Attributes:
        tokens: tokens by id.
        dtype: dtype of the ids.
        labels: index by label; `NO_LABEL` for None.
    """

    tokens: pa.Array
    dtype: np.dtype
    labels: dict[str | None, int]


class TokenStoreBuilder:
    """Builder of a token store. Each step needs the previous one, for all shards.

    Args:
        folder: folder of the store, which must exist.
        source: source of the documents.
        tokenizer: config of the tokenizer.
        documents_per_shard: documents in a shard.
        cleaning: rules that drop documents; those of the test split are all kept.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        tokenizer: TokenizerConfig,
        documents_per_shard: int,
        cleaning: Cleaning = Cleaning(),  # noqa: B008 (immutable)
    ):
        self.folder, self.source, self.tokenizer, self.cleaning = folder, source, tokenizer, cleaning
        self.shards = SourceShards(folder, source, documents_per_shard, cleaning)

    def hash_documents(self, shards: Iterable[int], num_workers: int, shown: bool) -> None:
        """Hash the documents of those of the shards whose hashes are missing, if duplicates are dropped.

        Raises:
            UserError: a document cannot be read, or a file cannot be written.
        """
        missing = sorted(set(self.shards.unhashed()) & set(shards))
        self._work("hashing", _no_resource, self.hash_shard, missing, num_workers, shown)

    def hash_shard(self, i: int, _: None) -> tuple[int, int]:
        """Write the hashes of one shard's documents; return its numbers of documents and tokens, which are not counted."""
        self.shards.hash_shard(i)
        return self.shards.num_documents(i), 0

    def tokenize(self, shards: Iterable[int], num_workers: int, shown: bool) -> None:
        """Tokenize those of the shards that are missing.

        Args:
            num_workers: maximum number of processes; a small corpus is tokenized in this one.
            shown: show a progress bar.

        Raises:
            UserError: a document cannot be read, or a file cannot be written.
        """
        missing = [i for i in shards if not self._local(i).exists()]
        self._work("tokenizing", self.open_tokenizer, self.tokenize_shard, missing, num_workers, shown)

    def _work(
        self,
        name: str,
        open_resource: Callable[[], Any],
        work: Callable[[int, Any], tuple[int, int]],
        shards: Sequence[int],
        num_workers: int,
        shown: bool,
    ) -> None:
        """Call `work` for each shard, in worker processes if there are enough documents; it returns documents and tokens."""
        if not shards:
            return
        num_documents = sum(map(self.shards.num_documents, shards))
        num_workers = min(num_workers, num_documents // DOCUMENTS_PER_WORKER)
        with Progress(name, num_documents, shown) as progress:
            for num_done, num_tokens in run_in_workers(open_resource, work, shards, num_workers):
                progress.advance(num_done, counted=num_tokens)

    def train_tokenizer(self) -> None:
        """Write the SentencePiece model to the folder, trained on a sample of the texts or copied, if the config needs one.

        Raises:
            UserError: the model cannot be trained, read or written.
        """
        if self.tokenizer.type == "sentencepiece" and not (self.folder / MODEL_FILE).exists():
            from ulmfit_dist.data.tokenizers.sentencepiece import make_model

            write_bytes(
                self.folder / MODEL_FILE, make_model(self.tokenizer, self.shards.sample(self.tokenizer.sp_sample_documents))
            )

    def open_tokenizer(self) -> TextTokenizer:
        """Return the tokenizer; imported here because it needs spaCy, which reading a store does not."""
        from ulmfit_dist.data.tokenizers.registry import open_tokenizer

        tokenizer = open_tokenizer(self.tokenizer, self.folder)
        gc.freeze()  # modules loaded so far stay loaded: exclude them from garbage collection
        return tokenizer

    def tokenize_shard(self, i: int, tokenizer: TextTokenizer) -> tuple[int, int]:
        """Write one shard with local ids; return its numbers of documents and tokens."""
        texts, labels, splits, verdicts = shard = self.shards.read(i)
        chosen = shard.kept
        hashes = np.array([text_hash(text) for text in chosen.values()], dtype=np.uint64)
        ids, lengths = tokenizer.encode(list(chosen.values()))
        kept = lengths > EMPTY
        local = localize(ids[np.repeat(kept, lengths)], tokenizer.tokens)
        offsets = np.concatenate([[0], np.cumsum(lengths[kept], dtype=np.int64)])
        documents = np.array(list(chosen), dtype=np.int64)[kept].tolist()
        metadata: dict[str, Any] = {
            "labels": [labels[n] for n in documents],
            "documents": Counter(splits[n] for n in documents),
            "num_empty": len(chosen) - len(documents),
            "num_skipped": texts.count(None),
        }
        if self.cleaning.identity:
            metadata["dropped"] = {key: int((verdicts == verdict).sum()) for verdict, key in KEYS.items()}
        write_table(self._local(i, ".counts"), local.counts)
        write_bytes(self._local(i, ".tokens"), local.ids.tobytes())
        write_bytes(self._local(i, ".offsets"), offsets.tobytes())
        write_bytes(self._local(i, ".hashes"), hashes[kept].tobytes())
        write_json(self._local(i), metadata, indent=None)
        return len(texts), len(ids)

    def merge(self) -> None:
        """Write `vocab.json` from the counts of all shards except those of the test split, and the list of labels."""
        shards = range(len(self.shards))
        counted = (self._read_counts(i) for i in shards if not self.shards.is_test(i))
        min_freq, max_vocab = self.tokenizer.min_freq, self.tokenizer.max_vocab
        counts = frequent_tokens(counted, min_freq, max_vocab, self.folder / "local-spilled-counts")
        labels = {label for i in shards for label in self._read_metadata(i)["labels"] if label is not None}
        write_json(self.folder / "vocab.json", build_vocab(counts, min_freq, max_vocab))
        write_json(self._labels_file, _sorted_labels(labels))

    def map(self, shards: Iterable[int], num_workers: int) -> None:
        """Write the shards with the ids of the vocabulary, in threads: numpy and Arrow release the GIL."""
        indices = self.open_indices()
        with ThreadPoolExecutor(max(num_workers, 1)) as pool:
            for _ in pool.map(lambda i: self.map_shard(i, indices), shards):
                pass

    def open_indices(self) -> Indices:
        """Return the vocabulary and labels that shards are mapped to."""
        vocab = load_vocab(self.folder / "vocab.json")
        labels: dict[str | None, int] = {name: i for i, name in enumerate(self._labels())}
        return Indices(known_tokens(vocab), token_dtype(vocab), {**labels, None: NO_LABEL})

    def map_shard(self, i: int, indices: Indices) -> None:
        """Write one shard with the ids of the vocabulary, and its statistics."""
        local = self._read_metadata(i)
        ids = np.fromfile(self._local(i, ".tokens"), dtype=np.uint32)
        offsets = np.fromfile(self._local(i, ".offsets"), dtype=np.int64)
        labels = np.array([indices.labels[label] for label in local["labels"]], dtype=np.int32)
        tokens = id_map(self._read_counts(i)["token"], indices.tokens).astype(indices.dtype)[ids]
        stem = self.folder / shard_stem(i, len(self.shards))
        write_shard(stem, tokens, offsets, labels, np.fromfile(self._local(i, ".hashes"), dtype=np.uint64))
        stats: dict[str, Any] = {
            key: local[key] for key in ("documents", "num_empty", "num_skipped", "dropped") if key in local
        }
        stats |= {"checksum": shard_checksum(stem), **_count(local["documents"], tokens, offsets)}
        write_json(self._local(i, ".stats.json"), stats)

    def finish(self, identity: dict[str, Any]) -> None:
        """Write `meta.json`, which completes the store, and remove local files."""
        vocab = load_vocab(self.folder / "vocab.json")
        stats = [json.loads(self._local(i, ".stats.json").read_text("utf-8")) for i in range(len(self.shards))]
        splits, start = {}, 0
        dropped = {key: _sum_of(stats, "dropped", key) for key in KEYS.values() if key in self.cleaning.identity}
        for split in self.source.splits:
            stop = start + _sum_of(stats, "documents", split)
            if stop == start and any(dropped.values()):
                raise UserError(
                    f"the {split} split has no document left: dropped {describe_dropped(dropped)}: lower or unset these keys"
                )
            if stop == start:
                raise UserError(f"the {split} split has no document with a word in it")
            splits[split] = (start, stop)
            start = stop
        meta = {
            **identity,
            "fingerprint": self.folder.name,
            "num_documents": start,
            "num_tokens": sum(sum(shard["tokens"].values()) for shard in stats),
            "tokens": {split: _sum_of(stats, "tokens", split) for split in splits},
            "unknown": {split: _sum_of(stats, "unknown", split) for split in splits},
            "num_empty": sum(shard["num_empty"] for shard in stats),
            "num_skipped": sum(shard["num_skipped"] for shard in stats),
            **({"dropped": dropped} if dropped else {}),
            "longest": max(shard["longest"] for shard in stats),
            "num_shards": len(self.shards),
            "dtype": str(token_dtype(vocab)),
            "vocab_size": len(vocab),
            "splits": splits,
            "labels": self._labels(),
            "checksums": [shard["checksum"] for shard in stats],
        }
        write_json(self.folder / "meta.json", meta)
        for leftover in self.folder.glob("local-*"):
            leftover.unlink()

    def remake(self, shards: Iterable[int], meta: dict[str, Any]) -> None:
        """Build damaged shards of a finished store again.

        Raises:
            UserError: the result differs from the checksums, so the texts have changed.
        """
        shards = list(shards)
        write_json(self._labels_file, meta["labels"])
        self.hash_documents(range(len(self.shards)), num_workers=1, shown=False)
        self.shards.find_duplicates()
        self.tokenize(shards, num_workers=1, shown=False)
        self.map(shards, num_workers=1)
        for i in shards:
            if shard_checksum(self.folder / shard_stem(i, len(self.shards))) != meta["checksums"][i]:
                raise UserError(
                    f"{self.folder}: damaged, and the texts have changed since: delete the folder and prepare it again"
                )
        for leftover in self.folder.glob("local-*"):
            leftover.unlink()

    def _labels(self) -> list[str]:
        labels: list[str] = json.loads(self._labels_file.read_text("utf-8"))
        return labels

    @property
    def _labels_file(self) -> Path:
        return self.folder / "local-labels.json"

    def _local(self, i: int, ending: str = ".json") -> Path:
        """Return the path of a file with local ids; the JSON file of a shard is written last."""
        return self.folder / f"local-{i:05d}{ending}"

    def _read_counts(self, i: int) -> pa.Table:
        return pa.ipc.open_file(self._local(i, ".counts").read_bytes()).read_all()

    def _read_metadata(self, i: int) -> dict[str, Any]:
        metadata: dict[str, Any] = json.loads(self._local(i).read_text(encoding="utf-8"))
        return metadata


def _no_resource() -> None:
    """Return what work that needs no resource receives."""


def text_hash(text: str) -> int:
    """Return the xxh3 of a text, stripped of white space at its ends."""
    return int(xxhash.xxh3_64_intdigest(text.strip().encode("utf-8", "surrogatepass")))


def _count(documents: dict[str, int], tokens: np.ndarray, offsets: np.ndarray) -> dict[str, Any]:
    """Return statistics of a shard: tokens and unknown tokens by split, and the longest document.

    Args:
        documents: number of documents by split, in order.
    """
    counted: dict[str, dict[str, int]] = {"tokens": {}, "unknown": {}}
    first = 0
    for split, number in documents.items():
        part = tokens[offsets[first] : offsets[first + number]]
        counted["tokens"][split] = len(part)
        counted["unknown"][split] = int((part == UNK_ID).sum())
        first += number
    return {**counted, "longest": int(np.diff(offsets).max(initial=0))}


def _sum_of(stats: list[dict[str, Any]], key: str, split: str) -> int:
    """Return the sum of a split's statistic over all shards."""
    return sum(shard[key].get(split, 0) for shard in stats)


def _sorted_labels(labels: set[str]) -> list[str]:
    """Return labels in order, numerically if all are integers."""
    if all(re.fullmatch(r"-?[0-9]+", label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)
