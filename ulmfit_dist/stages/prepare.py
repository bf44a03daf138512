"""Text to token store, shared out over the ranks.

Three steps, each joined by all ranks: every rank tokenizes its shards into local ids and counts, rank 0 merges the counts
into the vocabulary, every rank maps its shards to the vocabulary's ids. Shards are dealt by their number, so any number of
ranks writes the same bytes, and a shard that lies on disk is not made again. `meta.json` comes last: a store is finished
or it is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from filelock import FileLock

from ulmfit_dist.config import Config
from ulmfit_dist.data.sources import Documents, Source, Subset, open_source
from ulmfit_dist.data.store import (
    FORMAT,
    NO_LABEL,
    TokenStore,
    shard_stem,
    token_dtype,
    write_bytes,
    write_json,
    write_shard,
)
from ulmfit_dist.data.vocab import UNK_ID, LocalVocab, build_vocab, id_map, load_vocab, merge_counts
from ulmfit_dist.errors import UserError
from ulmfit_dist.progress import Progress
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.training.random import permutation


def prepare(config: Config, runtime: Runtime) -> TokenStore:
    """The token store of the config's texts: found, or made by all ranks together.

    Raises:
        UserError: on every rank, for whatever is wrong with the source, a file in it, or the cache folder.
    """
    folder = Path(config.data.store) if config.data.store is not None else _find_or_make(config, runtime)
    with runtime.together():
        store = TokenStore(folder)
    runtime.print(_summary(store))
    return store


def _find_or_make(config: Config, runtime: Runtime) -> Path:
    source = _open_in_turn(config, runtime)
    identity = _identity(config, source)
    folder = Path(config.data.cache) / _fingerprint(identity)
    with _only_run(folder, runtime):
        if not runtime.from_main((folder / "meta.json").exists()):
            _make(folder, identity, config, source, runtime)
    return folder


@contextmanager
def _only_run(folder: Path, runtime: Runtime) -> Iterator[None]:
    """Let one run at a time make a store: the others wait, and find it. The lock goes with its process."""
    lock = FileLock(folder.with_suffix(".lock"))
    with runtime.together():
        if runtime.is_main:
            _make_folder(folder.parent)
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _open_in_turn(config: Config, runtime: Runtime) -> Source:
    """Rank 0 first: `datasets` converts a table once, and the other ranks find it."""
    source: Source | None = None
    for turn in (True, False):
        with runtime.together():
            if runtime.is_main is turn:
                source = _limited(open_source(config.data), config)
    assert source is not None
    return source


def _limited(source: Source, config: Config) -> Source:
    """Of each split `data.limit` documents at most, drawn by seed."""
    limit = config.data.limit
    if limit is None:
        return source
    splits: dict[str, Documents] = {}
    for split, documents in source.splits.items():
        drawn = permutation(len(documents), config.seed, "limit", split)[:limit]
        splits[split] = Subset(documents, np.sort(drawn))
    return Source(splits, {**source.identity, "limit": limit, "seed": config.seed})


def _identity(config: Config, source: Source) -> dict[str, Any]:
    """All that the bytes of the store depend on."""
    return {
        "format": FORMAT,
        "source": {"kind": config.data.source, **source.identity},
        "tokenizer": vars(config.tokenizer),
        "shard_documents": config.data.shard_documents,
        "versions": {package: version(package) for package in ("fastai", "spacy")},
    }


def _fingerprint(identity: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(identity, sort_keys=True).encode())[:16]


def _make(folder: Path, identity: dict[str, Any], config: Config, source: Source, runtime: Runtime) -> None:
    with runtime.together():
        if runtime.is_main:
            _make_folder(folder)
    shards = list(_cut(source, config.data.shard_documents))
    mine = range(runtime.rank, len(shards), runtime.world_size)
    with runtime.together():
        _tokenize_shards(folder, config, source, shards, mine, runtime)
    with runtime.together():
        if runtime.is_main:
            vocab = _merge(folder, config, len(shards))
            write_json(folder / "vocab.json", vocab)
    labels = _label_names(folder, len(shards))
    with runtime.together():
        _map_shards(folder, labels, mine, len(shards))
    with runtime.together():
        if runtime.is_main:
            write_json(folder / "meta.json", _meta(folder, identity, source, labels, len(shards)))
            for leftover in folder.glob("local-*"):
                leftover.unlink()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}): set data.cache to a folder of yours") from None


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


def _tokenize_shards(
    folder: Path, config: Config, source: Source, shards: list[Any], mine: Iterable[int], runtime: Runtime
) -> None:
    from ulmfit_dist.data.tokenizer import Tokenizer

    missing = [i for i in mine if not _local_path(folder, i).exists()]
    if not missing:
        return
    tokenizer = Tokenizer.from_config(config.tokenizer)
    num_documents = sum(stop - start for i in missing for _, start, stop in shards[i])
    with Progress("tokenizing", num_documents, runtime.is_main) as progress:
        for i in missing:
            vocab, ids, lengths, labels = LocalVocab(), [], [0], []
            for split, start, stop in shards[i]:
                texts, names = source.splits[split].read(start, stop)
                labels += names
                for tokens in tokenizer.stream(texts):
                    ids.append(np.array(vocab.encode(tokens), dtype=np.uint32))
                    lengths.append(len(tokens))
                    progress.advance()
            _write_local(_local_path(folder, i), ids, lengths, labels, vocab)


def _local_path(folder: Path, i: int) -> Path:
    return folder / f"local-{i:05d}.json"


def _write_local(path: Path, ids: list[np.ndarray], lengths: list[int], labels: list[str | None], vocab: LocalVocab) -> None:
    """A shard with ids of its own: the arrays first, so that the JSON file says that the shard is done."""
    write_bytes(path.with_suffix(".tokens"), np.concatenate(ids).tobytes())
    write_bytes(path.with_suffix(".offsets"), np.cumsum(lengths, dtype=np.int64).tobytes())
    write_json(path, {"tokens": list(vocab.ids), "counts": vocab.counts, "labels": labels})


def _read_local(folder: Path, i: int) -> dict[str, Any]:
    return json.loads(_local_path(folder, i).read_text(encoding="utf-8"))


def _merge(folder: Path, config: Config, num_shards: int) -> list[str]:
    parts = (_read_local(folder, i) for i in range(num_shards))
    counts = merge_counts((part["tokens"], part["counts"]) for part in parts)
    return build_vocab(counts, config.tokenizer.min_freq, config.tokenizer.max_vocab)


def _label_names(folder: Path, num_shards: int) -> list[str]:
    """All labels, sorted; as numbers where all are numbers."""
    names = {label for i in range(num_shards) for label in _read_local(folder, i)["labels"] if label is not None}
    if all(name.lstrip("-").isdigit() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _map_shards(folder: Path, label_names: list[str], mine: Iterable[int], num_shards: int) -> None:
    vocab = load_vocab(folder / "vocab.json")
    index = {name: i for i, name in enumerate(label_names)}
    for i in mine:
        local = _read_local(folder, i)
        ids = np.fromfile(_local_path(folder, i).with_suffix(".tokens"), dtype=np.uint32)
        offsets = np.fromfile(_local_path(folder, i).with_suffix(".offsets"), dtype=np.int64)
        labels = np.array([NO_LABEL if label is None else index[label] for label in local["labels"]], dtype=np.int32)
        tokens = id_map(local["tokens"], vocab).astype(token_dtype(vocab))[ids]
        write_shard(folder / shard_stem(i, num_shards), tokens, offsets, labels)


def _meta(folder: Path, identity: dict[str, Any], source: Source, labels: list[str], num_shards: int) -> dict[str, Any]:
    vocab = load_vocab(folder / "vocab.json")
    dtype = token_dtype(vocab)
    splits, start = {}, 0
    for split, documents in source.splits.items():
        splits[split] = (start, start + len(documents))
        start += len(documents)
    tokens = [np.fromfile(folder / f"{shard_stem(i, num_shards)}.tokens", dtype=dtype) for i in range(num_shards)]
    return {
        **identity,
        "fingerprint": folder.name,
        "num_documents": start,
        "num_tokens": sum(map(len, tokens)),
        "num_unknown": sum(int((shard == UNK_ID).sum()) for shard in tokens),
        "num_shards": num_shards,
        "dtype": str(dtype),
        "vocab_size": len(vocab),
        "splits": splits,
        "labels": labels,
    }


def _summary(store: TokenStore) -> str:
    meta = store.meta
    unknown = meta["num_unknown"] / max(meta["num_tokens"], 1)
    return (
        f"texts: {meta['num_documents']:,} documents, {meta['num_tokens']:,} tokens, vocabulary {meta['vocab_size']:,}, "
        f"{unknown:.2%} unknown, {len(store.label_names)} classes ({store.path})"
    )
