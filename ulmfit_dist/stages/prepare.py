"""Text to token store, shared out over the ranks.

Three steps, each joined by all ranks: every rank tokenizes its shards into local ids and counts, rank 0 merges the counts
into the vocabulary, every rank maps its shards to the vocabulary's ids. Shards are dealt by their number, so any number of
ranks writes the same bytes, and a shard that lies on disk is not made again. `meta.json` comes last: a store is finished
or it is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from filelock import BaseFileLock, FileLock, Timeout

from ulmfit_dist.config.schema import Config, TokenizerConfig
from ulmfit_dist.data.node_cache import copy_store
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.sources.base import Source
from ulmfit_dist.data.sources.subset import cut_test_split, limit_documents
from ulmfit_dist.data.splits import describe_duplicates, missing_labels, num_dropped, split_documents
from ulmfit_dist.data.store_builder import TokenStoreBuilder
from ulmfit_dist.data.token_store import FORMAT, NO_LABEL, TokenStore, damaged_shards, read_meta
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import make_folder
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

CLASSES_NAMED = 10
"""Classes that are named with their number of documents, the largest ones."""
SENTENCEPIECE_KEYS = ("sp_model", "sp_model_type", "sp_vocab_size", "sp_sample_documents")


def prepare(config: Config, runtime: Runtime, verify: bool = False) -> TokenStore:
    """The token store of the config's texts: found, or made by all ranks together.

    Args:
        verify: hash all files of the source again, whatever the cache holds of them.

    Raises:
        UserError: on every rank, for whatever is wrong with the source, a file in it, or the cache folder.
    """
    folder = Path(config.data.token_store) if config.data.token_store is not None else _find_or_make(config, runtime, verify)
    if config.data.node_cache_dir is not None:
        folder = _copy_to_node(folder, Path(config.data.node_cache_dir), runtime)
    with runtime.fail_together():
        store = TokenStore(folder)
        _check_tokenizer(store, config)
        if config.data.token_store is not None:
            _check_cuts(store, config)
    logger.debug(summarize(store))
    with runtime.fail_together():
        if runtime.is_main:
            _report_oddities(store, config)
    return store


def _report_oddities(store: TokenStore, config: Config) -> None:
    """Report documents without a label where `data.missing_label` may be a class, and equal texts on two sides."""
    are_numbers = bool(store.label_names) and all(re.fullmatch(r"[+-]?\d+", name) for name in store.label_names)
    if are_numbers and (missing := missing_labels(store, config)):
        logger.warning(missing)
    try:
        splits = split_documents(store, config)
    except UserError:
        return  # of the stages that need the splits
    if described := describe_duplicates(store, splits, config):
        logger.warning(f"{described} (data.on_duplicates=drop leaves them out of the first)")
    if dropped := num_dropped(store, config):
        logger.warning(f"{dropped:,} training documents are dropped: valid or test has their text (data.on_duplicates=drop)")
    if repeated := len(store) - len(np.unique(store.text_hashes)):
        logger.debug(f"{repeated:,} documents have the text of another one")


def _find_or_make(config: Config, runtime: Runtime, verify: bool) -> Path:
    source = _open_in_turn(config, runtime, verify)
    identity = _identity(config, source)
    folder = Path(config.data.cache_dir) / _fingerprint(identity)
    if _is_finished(folder, runtime) and not _damaged(folder, runtime):
        return folder
    with runtime.fail_together():
        if runtime.is_main:
            make_folder(folder, "data.cache_dir")
    builder = TokenStoreBuilder(folder, source, config.tokenizer, config.data.documents_per_shard)
    with _only_run(folder, runtime):
        if not _is_finished(folder, runtime):
            _make(builder, identity, config.data.num_proc, runtime)
        elif damaged := _damaged(folder, runtime):
            logger.info(f"{folder}: {len(damaged)} damaged shard(s), made again")
            with runtime.fail_together():
                if runtime.is_main:
                    builder.remake(damaged, read_meta(folder))
    return folder


def _copy_to_node(folder: Path, cache: Path, runtime: Runtime) -> Path:
    """The store's copy on this node's own disk, made by the node's first rank."""
    with runtime.fail_together():
        if runtime.is_local_main:
            copy_store(folder, cache)
    return cache / str(read_meta(folder)["fingerprint"])


def _damaged(folder: Path, runtime: Runtime) -> list[int]:
    """Numbers of the shards that are not what they were, found by all ranks together."""
    found: list[int] = []
    with runtime.fail_together():
        meta = read_meta(folder)
        found = damaged_shards(folder, meta, range(runtime.rank, meta["num_shards"], runtime.world_size))
    return sorted(i for part in runtime.all_gather_object(found) for i in part)


def _is_finished(folder: Path, runtime: Runtime) -> bool:
    return runtime.broadcast_object((folder / "meta.json").exists())


@contextmanager
def _only_run(folder: Path, runtime: Runtime) -> Iterator[None]:
    """Let one run at a time make a store: the others wait, and find it. The lock goes with its process."""
    lock = FileLock(folder.with_suffix(".lock"))
    with runtime.fail_together():
        if runtime.is_main:
            _acquire(lock, folder)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info(f"waiting for another run that makes {folder} ...")
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"{lock.lock_file}: cannot be locked ({error.strerror}): set data.cache_dir to a folder of yours"
        ) from None


def _open_in_turn(config: Config, runtime: Runtime, verify: bool) -> Source:
    """Open the source on rank 0 first: it hashes the content, and the other ranks find the hashes in the cache."""
    source: Source | None = None
    for turn in (True, False):
        with runtime.fail_together():
            if runtime.is_main is turn:
                whole = cut_test_split(open_source(config.data, verify and turn), config.data.test_pct)
                source = limit_documents(whole, config.data.max_documents, config.seed)
    assert source is not None
    for notice in source.notices:
        logger.warning(notice)
    return source


def _identity(config: Config, source: Source) -> dict[str, Any]:
    """All that the bytes of the store depend on."""
    return {
        "format": FORMAT,
        "source": {"type": config.data.source, **source.identity},
        "tokenizer": _tokenizer_identity(config.tokenizer),
        "documents_per_shard": config.data.documents_per_shard,
        "versions": {package: version(package) for package in _makers(config.tokenizer)},
    }


def _tokenizer_identity(config: TokenizerConfig) -> dict[str, Any]:
    """The config of a tokenizer, with what is in its model instead of where that lies."""
    identity = dict(vars(config))
    if config.type == "word":
        return {key: value for key, value in identity.items() if key not in SENTENCEPIECE_KEYS}
    if config.sp_model is not None:
        try:
            identity["sp_model"] = xxhash.xxh3_64_hexdigest(Path(config.sp_model).read_bytes())
        except OSError as error:
            raise UserError(f"tokenizer.sp_model={config.sp_model}: cannot be read ({error.strerror})") from None
    return identity


def _makers(config: TokenizerConfig) -> tuple[str, ...]:
    """The packages that the tokens depend on."""
    return ("fastai", "spacy") if config.type == "word" else ("fastai", "sentencepiece")


def _fingerprint(identity: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(identity, sort_keys=True).encode())[:16]


def _make(builder: TokenStoreBuilder, identity: dict[str, Any], num_workers: int, runtime: Runtime) -> None:
    mine = range(runtime.rank, len(builder.shards), runtime.world_size)
    with runtime.fail_together():
        if runtime.is_main:
            builder.train_tokenizer()
    with runtime.fail_together():
        builder.tokenize(mine, num_workers, shown=runtime.is_main)
    with runtime.fail_together():
        if runtime.is_main:
            builder.merge()
    with runtime.fail_together():
        builder.map(mine, num_workers)
    with runtime.fail_together():
        if runtime.is_main:
            builder.finish(identity)


def _check_tokenizer(store: TokenStore, config: Config) -> None:
    """New texts must be tokenized as those of the store were."""
    for key in ("type", "lang", "rules"):
        then, now = store.meta["tokenizer"][key], getattr(config.tokenizer, key)
        if then != now:
            raise UserError(f"{store.path} was made with tokenizer.{key}={then}, the config says {now}: set them alike")


def _check_cuts(store: TokenStore, config: Config) -> None:
    """Refuse documents that a store was to be made with, and was not."""
    for key in ("test_pct", "max_documents"):
        now, then = getattr(config.data, key), store.meta.get("source", {}).get(key)
        if now is not None and now != then:
            raise UserError(
                f"data.{key}={now}: {store.path} was made with {'null' if then is None else then}: set it to null, or "
                f"prepare the texts again without data.token_store"
            )


def summarize(store: TokenStore) -> str:
    meta = store.meta
    unknown = ", ".join(f"{meta['unknown'][split] / max(n, 1):.2%} of {split}" for split, n in meta["tokens"].items())
    left_out = {"empty": meta["num_empty"], "unreadable": meta["num_skipped"]}
    told = "".join(f" ({number:,} {kind} left out)" for kind, number in left_out.items() if number)
    return (
        f"texts: {meta['num_documents']:,} documents{told}, {meta['num_tokens']:,} tokens, "
        f"{meta['longest']:,} in the longest; vocabulary {meta['vocab_size']:,}, unknown {unknown}; "
        f"{int((store.labels != NO_LABEL).sum()):,} labelled with {_classes(store)} ({store.path})"
    )


def _classes(store: TokenStore) -> str:
    """How many there are, and the largest ones: a label that is misspelt is seen to be one of its own."""
    counts = np.bincount(store.labels[store.labels != NO_LABEL], minlength=len(store.label_names))
    largest = np.argsort(-counts, kind="stable")[:CLASSES_NAMED]
    named = ", ".join(f"{store.label_names[i]} {counts[i]:,}" for i in largest)
    more = ", ..." if len(counts) > CLASSES_NAMED else ""
    return f"{len(counts)} classes" + (f": {named}{more}" if named else "")
