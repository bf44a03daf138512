"""Token stores of sample documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_dist.data.token_store import FORMAT, TokenStore, shard_checksum, shard_stem, write_shard
from ulmfit_dist.utils.files import write_json


def make_store(
    folder: Path,
    documents: Sequence[np.ndarray],
    labels: np.ndarray,
    vocab: Sequence[str],
    splits: Mapping[str, Sequence[int]] | None = None,
) -> TokenStore:
    """Return a token store of documents given as ids, ten per shard; without splits all documents are train."""
    folder.mkdir(exist_ok=True)
    num_shards = -(-len(documents) // 10)
    for shard in range(num_shards):
        part = documents[shard * 10 : shard * 10 + 10]
        offsets = np.cumsum([0, *map(len, part)])
        ids = np.concatenate(part).astype(np.uint16)
        hashes = np.arange(shard * 10, shard * 10 + len(part))
        write_shard(folder / shard_stem(shard, num_shards), ids, offsets, labels[shard * 10 : shard * 10 + 10], hashes)
    meta: dict[str, Any] = {"format": FORMAT, "fingerprint": "x", "num_documents": len(documents), "num_shards": num_shards}
    meta |= {"dtype": "uint16", "splits": splits or {"train": [0, len(documents)]}, "labels": ["a", "b", "c"]}
    meta["checksums"] = [shard_checksum(folder / shard_stem(shard, num_shards)) for shard in range(num_shards)]
    write_json(folder / "vocab.json", list(vocab))
    write_json(folder / "meta.json", meta)
    return TokenStore(folder)
