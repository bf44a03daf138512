"""Token store: a corpus as token ids on disk, read through memory maps.

A store is one folder, named by a fingerprint of its source and tokenizer, and read-only once `meta.json` exists. Documents
keep the order of the source, train before valid before unlabelled before test, and are divided into shards of equal numbers
of documents (empty ones are then left out), so the bytes depend only on data and config. Documents of the test split have
separate shards. Offsets, lengths, labels and hashes (28 bytes per document) are held in memory; ids stay on disk, in the
operating system's page cache. Trade-off: memory grows with the number of documents, not with their length.

    meta.json                         source, tokenizer, counts, splits, labels
    vocab.json                        tokens by id
    sentencepiece.model               SentencePiece model, if that is the tokenizer
    shard-00003-of-00016.tokens       ids, flat: uint16 if the vocabulary fits, else uint32
    shard-00003-of-00016.offsets      int64 [documents + 1]: begin of each document
    shard-00003-of-00016.labels       int32 [documents]: index in the labels, -1 for none
    shard-00003-of-00016.hashes       uint64 [documents]: hash of the text, stripped
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ulmfit_dist.data.vocab import load_vocab
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import write_bytes

FORMAT = 5
"""Version of the format, in `meta.json`."""
ENDINGS = (".tokens", ".offsets", ".labels", ".hashes")
"""Endings of a shard's files."""
NO_LABEL = -1
"""Label index of a document without a label."""
MAX_COUNTED = 100_000_000
"""Number of tokens whose occurrences are counted, at most: about a second."""
COUNTED_AT_ONCE = 1 << 22
"""Number of tokens that are counted at once: 32 MB."""
MODEL_FILE = "sentencepiece.model"
"""File name of the SentencePiece model, in a token store and in an exported model."""


class TokenStore:
    """Finished token store, open for reading.

    Attributes:
        path: folder of the store.
        meta: content of `meta.json`.
        vocab: tokens by id.
        label_names: labels by index; empty if no document is labelled.
        lengths: tokens of each document, int64 [documents].
        labels: label of each document, int32 [documents], `NO_LABEL` for none.
        text_hashes: hash of each document's text, uint64 [documents].

    Raises:
        UserError: not a token store, or the files do not have the lengths of `meta.json`.
    """

    def __init__(self, path: Path):
        self.path = path
        self.meta = read_meta(path)
        self.vocab = load_vocab(path / "vocab.json")
        self.label_names: list[str] = self.meta["labels"]
        num_shards = self.meta["num_shards"]
        stems = [path / shard_stem(i, num_shards) for i in range(num_shards)]
        offsets = [_read(stem, ".offsets", np.dtype(np.int64)) for stem in stems]
        self.lengths = np.concatenate([np.diff(o) for o in offsets])
        self.labels = np.concatenate([_read(stem, ".labels", np.dtype(np.int32)) for stem in stems])
        self.text_hashes = np.concatenate([_read(stem, ".hashes", np.dtype(np.uint64)) for stem in stems])
        self._begins = np.concatenate([o[:-1] for o in offsets])  # begin of each document in its shard
        self._first_documents = np.cumsum([0, *(len(o) - 1 for o in offsets[:-1])])  # first document of each shard
        self._tokens = [_map(stem, np.dtype(self.meta["dtype"]), int(o[-1])) for stem, o in zip(stems, offsets, strict=True)]
        if not len(self.lengths) == len(self.labels) == len(self.text_hashes) == self.meta["num_documents"]:
            raise UserError(
                f"{path}: has {len(self.lengths)} documents, but meta.json names {self.meta['num_documents']}: delete the "
                f"store and prepare it again"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def fingerprint(self) -> str:
        return str(self.meta["fingerprint"])

    def document(self, i: int) -> np.ndarray:
        """Return the ids of a document: a view into the memory map."""
        return self.pieces(np.array([i]), np.array([0]), self.lengths[[i]])[0]

    def pieces(self, documents: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
        """Return the ids of pieces of documents, from token `begins` to token `ends`: views into the memory map."""
        shards = np.searchsorted(self._first_documents, documents, side="right") - 1
        offsets = self._begins[documents]
        slices = zip(shards.tolist(), (offsets + begins).tolist(), (offsets + ends).tolist(), strict=True)
        return [self._tokens[shard][begin:end] for shard, begin, end in slices]

    def split(self, name: str) -> np.ndarray:
        """Return the indices of a split's documents, int64; empty if the store has no such split."""
        start, stop = self.meta["splits"].get(name, (0, 0))
        return np.arange(start, stop)

    def token_counts(self, most: int = MAX_COUNTED) -> np.ndarray:
        """Return how often each token of the vocabulary occurs, int64 [V].

        Args:
            most: number of tokens that are counted, an equal number of each shard.
        """
        counts = np.zeros(len(self.vocab), dtype=np.int64)
        for tokens in self._tokens:
            counted = tokens[: max(most // len(self._tokens), 1)]
            for start in range(0, len(counted), COUNTED_AT_ONCE):
                counts += np.bincount(counted[start : start + COUNTED_AT_ONCE], minlength=len(counts))
        return counts


def read_meta(path: Path) -> dict[str, Any]:
    """Return the content of a store's `meta.json`. Raises UserError if it is missing or of another format."""
    try:
        meta: dict[str, Any] = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no token store here (no meta.json): make one with 'ulmfit-dist prepare'") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'meta.json'}: cannot be read ({error})") from None
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path}: token store of format {meta.get('format')}, but this version reads {FORMAT}: prepare it again"
        )
    return meta


def shard_stem(i: int, num_shards: int) -> str:
    """Return the file name of a shard, without its ending."""
    return f"shard-{i:05d}-of-{num_shards:05d}"


def token_dtype(vocab: Sequence[str]) -> np.dtype:
    """Return the smallest dtype for the ids of a vocabulary: uint16 or uint32."""
    return np.dtype(np.uint16 if len(vocab) <= 2**16 else np.uint32)


def write_shard(stem: Path, tokens: np.ndarray, offsets: np.ndarray, labels: np.ndarray, hashes: np.ndarray) -> None:
    """Write the files of a shard, each atomically."""
    write_bytes(stem.with_name(stem.name + ".hashes"), hashes.astype(np.uint64).tobytes())
    write_bytes(stem.with_name(stem.name + ".labels"), labels.astype(np.int32).tobytes())
    write_bytes(stem.with_name(stem.name + ".offsets"), offsets.astype(np.int64).tobytes())
    write_bytes(stem.with_name(stem.name + ".tokens"), tokens.tobytes())


def shard_checksum(stem: Path) -> str:
    """Return the xxh3 of a shard's files, hexadecimal; empty if one is missing or cannot be read."""
    digest = xxhash.xxh3_64()
    try:
        for ending in ENDINGS:
            digest.update(stem.with_name(stem.name + ending).read_bytes())
    except OSError:
        return ""
    return digest.hexdigest()


def damaged_shards(path: Path, meta: dict[str, Any], shards: Iterable[int]) -> list[int]:
    """Return those of the shards that do not match the checksums of `meta.json`."""
    stems = {i: path / shard_stem(i, meta["num_shards"]) for i in shards}
    return [i for i, stem in stems.items() if shard_checksum(stem) != meta["checksums"][i]]


def _read(stem: Path, ending: str, dtype: np.dtype) -> np.ndarray:
    path = stem.with_name(stem.name + ending)
    try:
        return np.fromfile(path, dtype=dtype)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): delete the store and prepare it again") from None


def _map(stem: Path, dtype: np.dtype, num_tokens: int) -> np.ndarray:
    path = stem.with_name(stem.name + ".tokens")
    expected = num_tokens * dtype.itemsize
    if not path.is_file() or path.stat().st_size != expected:
        raise UserError(f"{path}: missing, or not {expected} bytes long: delete the store and prepare it again")
    # A plain array over the memory map: slicing a `np.memmap` takes many times as long.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if num_tokens else np.zeros(0, dtype)
