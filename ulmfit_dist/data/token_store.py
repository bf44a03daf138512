"""The token store: a corpus as ids on disk, read through memory maps.

A store is one folder, named by a fingerprint of what made it, and read-only once `meta.json` is there. Documents keep
the order of the source, train before valid before unlabelled before test, and are cut into shards of equal numbers of
documents (of which empty ones are then left out), so the bytes depend on the data and the config alone. Documents of the
test split have shards of their own. Offsets, lengths, labels and hashes (28 bytes a document) are held in memory; ids stay
on disk, and the pages in use are the operating system's to keep.

    meta.json                         what made it, counts, splits, labels
    vocab.json                        tokens by id
    sentencepiece.model               what made the tokens, if it was SentencePiece
    shard-00003-of-00016.tokens       ids, flat: uint16 where the vocabulary fits, else uint32
    shard-00003-of-00016.offsets      int64 [documents + 1]: where each document begins
    shard-00003-of-00016.labels       int32 [documents]: index in the labels, -1 for none
    shard-00003-of-00016.hashes       uint64 [documents]: of the text, without white space at its ends
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
ENDINGS = (".tokens", ".offsets", ".labels", ".hashes")
"""Files of a shard."""
NO_LABEL = -1
MODEL_FILE = "sentencepiece.model"
"""The model of SentencePiece, if that made the tokens: in a token store and in an exported model."""


class TokenStore:
    """A finished store, open for reading.

    Attributes:
        path: its folder.
        meta: the content of `meta.json`.
        vocab: tokens by id.
        label_names: class names by index; empty where nothing is labelled.
        lengths: tokens of each document, int64 [documents].
        labels: label of each document, int32 [documents], `NO_LABEL` for none.
        text_hashes: equal for documents of equal text, uint64 [documents].

    Raises:
        UserError: not a store, or one whose files are not as long as `meta.json` says.
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
        self._begins = np.concatenate([o[:-1] for o in offsets])  # where in its shard each document begins
        self._first_documents = np.cumsum([0, *(len(o) - 1 for o in offsets[:-1])])  # of each shard
        self._tokens = [_map(stem, np.dtype(self.meta["dtype"]), int(o[-1])) for stem, o in zip(stems, offsets, strict=True)]
        if not len(self.lengths) == len(self.labels) == len(self.text_hashes) == self.meta["num_documents"]:
            raise UserError(
                f"{path}: holds {len(self.lengths)} documents, not the {self.meta['num_documents']} of meta.json"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def fingerprint(self) -> str:
        return str(self.meta["fingerprint"])

    def document(self, i: int) -> np.ndarray:
        """Ids of a document: a view into the memory map."""
        return self.pieces(np.array([i]), np.array([0]), self.lengths[[i]])[0]

    def pieces(self, documents: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
        """Ids of parts of documents, each from one of its tokens up to another: views into the memory map."""
        shards = np.searchsorted(self._first_documents, documents, side="right") - 1
        offsets = self._begins[documents]
        where = zip(shards.tolist(), (offsets + begins).tolist(), (offsets + ends).tolist(), strict=True)
        return [self._tokens[shard][begin:end] for shard, begin, end in where]

    def split(self, name: str) -> np.ndarray:
        """Indices of the documents of a split (int64); empty where the store has no such split."""
        start, stop = self.meta["splits"].get(name, (0, 0))
        return np.arange(start, stop)


def read_meta(path: Path) -> dict[str, Any]:
    """`meta.json` of a finished store. Raises UserError where there is none."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no token store here (no meta.json): make one with 'ulmfit-dist prepare'") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path / 'meta.json'}: cannot be read ({error})") from None
    if meta.get("format") != FORMAT:
        raise UserError(f"{path}: a store of format {meta.get('format')}, this version reads {FORMAT}: prepare it again")
    return meta


def shard_stem(i: int, num_shards: int) -> str:
    """File name of a shard, without its ending."""
    return f"shard-{i:05d}-of-{num_shards:05d}"


def token_dtype(vocab: Sequence[str]) -> np.dtype:
    """The smallest type that holds the ids of a vocabulary."""
    return np.dtype(np.uint16 if len(vocab) <= 2**16 else np.uint32)


def write_shard(stem: Path, tokens: np.ndarray, offsets: np.ndarray, labels: np.ndarray, hashes: np.ndarray) -> None:
    """Write the files of a shard; each appears whole or not at all."""
    write_bytes(stem.with_name(stem.name + ".hashes"), hashes.astype(np.uint64).tobytes())
    write_bytes(stem.with_name(stem.name + ".labels"), labels.astype(np.int32).tobytes())
    write_bytes(stem.with_name(stem.name + ".offsets"), offsets.astype(np.int64).tobytes())
    write_bytes(stem.with_name(stem.name + ".tokens"), tokens.tobytes())


def shard_checksum(stem: Path) -> str:
    """xxh3 of a shard's files; empty where one is missing or cannot be read."""
    digest = xxhash.xxh3_64()
    try:
        for ending in ENDINGS:
            digest.update(stem.with_name(stem.name + ending).read_bytes())
    except OSError:
        return ""
    return digest.hexdigest()


def damaged_shards(path: Path, meta: dict[str, Any], which: Iterable[int]) -> list[int]:
    """Those of the shards of these numbers that are not as `meta.json` says."""
    stems = {i: path / shard_stem(i, meta["num_shards"]) for i in which}
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
    # A plain array over the memory map: to slice one of class memmap takes many times as long.
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if num_tokens else np.zeros(0, dtype)
