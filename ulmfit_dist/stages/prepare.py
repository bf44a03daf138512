"""Preparation of the token store from text, distributed over the ranks.

With `data.drop_duplicates`, every rank first hashes the documents of its shards, and rank 0 finds the duplicates. Then three
collective steps: every rank tokenizes its shards into local ids and counts, rank 0 merges the counts into the
vocabulary, every rank maps its shards to the vocabulary's ids. Shards are assigned by their number, so the bytes do not
depend on the world size, and a shard that is on disk is not written again. `meta.json` is written last: a store is complete
or absent. Trade-off: every shard is written twice, first with local ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from filelock import BaseFileLock, FileLock, Timeout

from ulmfit_dist.config.schema import Config, DataConfig, TokenizerConfig
from ulmfit_dist.data.cleaning import KEYS, Cleaning, describe_dropped
from ulmfit_dist.data.node_cache import copy_store
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.sources.base import Source
from ulmfit_dist.data.sources.subset import cut_test_split, limit_documents
from ulmfit_dist.data.splits import describe_duplicates, missing_labels, num_dropped, split_documents
from ulmfit_dist.data.store_builder import TokenStoreBuilder
from ulmfit_dist.data.token_store import FORMAT, NO_LABEL, TokenStore, damaged_shards, read_meta
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.pretrained import fetch, sp_model_of
from ulmfit_dist.pretrained.defaults import OF_THE_WEIGHTS
from ulmfit_dist.utils.files import make_folder
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

MAX_NAMED_CLASSES = 10
"""Number of classes, the largest ones, that are printed with their number of documents."""
SENTENCEPIECE_KEYS = ("sp_model", "sp_model_type", "sp_vocab_size", "sp_sample_documents")
"""Keys of the tokenizer section that a word tokenizer does not depend on."""


def prepare(config: Config, runtime: Runtime, verify: bool = False) -> TokenStore:
    """Return the token store of the config's texts, from the cache or built by all ranks. Collective.

    Args:
        verify: hash all files of the source again, even if the cache has their hashes.

    Raises:
        UserError: on every rank, for any error in the source, a file of it, or the cache folder.
    """
    existing = config.data.token_store
    if existing is None and config.tokenizer.sp_model == OF_THE_WEIGHTS:
        config = _with_sp_model(config, runtime)
    folder = Path(existing) if existing is not None else _find_or_build(config, runtime, verify)
    if config.data.node_cache_dir is not None:
        folder = _copy_to_node(folder, Path(config.data.node_cache_dir), runtime)
    with runtime.fail_together():
        store = TokenStore(folder)
        _check_tokenizer(store, config.tokenizer)
        if config.data.token_store is not None:
            _check_subset(store, config.data)
    logger.debug(summarize(store))
    with runtime.fail_together():
        if runtime.is_main:
            _report_suspicious(store, config, runtime)
    return store


def _with_sp_model(config: Config, runtime: Runtime) -> Config:
    """Return the config with the path of the pretrained weights' SentencePiece model. Collective."""
    name = config.model.pretrained or config.encoder_source
    assert name is not None  # checked in config/validation.py
    fetch(name, runtime, config.model.backwards)
    with runtime.fail_together():
        path = sp_model_of(name, config.model.backwards)
    return replace(config, tokenizer=replace(config.tokenizer, sp_model=str(path)))


def _report_suspicious(store: TokenStore, config: Config, runtime: Runtime) -> None:
    """Report unlabelled documents where `data.missing_label` may be a class, and equal texts in two splits."""
    are_numbers = bool(store.label_names) and all(re.fullmatch(r"[+-]?\d+", name) for name in store.label_names)
    if are_numbers and (missing := missing_labels(store, config)):
        logger.warning(missing)
    try:
        splits = split_documents(store, config)
    except UserError:
        return  # raised again by the stages that need the splits
    if description := describe_duplicates(store, splits, config):
        logger.warning(f"{description} (data.on_duplicates=drop leaves them out of the first)")
    if dropped := num_dropped(store, config):
        logger.warning(f"{dropped:,} training documents are dropped: valid or test has their text (data.on_duplicates=drop)")
    if repeated := len(store) - len(np.unique(store.text_hashes)):
        logger.debug(f"{repeated:,} documents have the same text as another one")


def _find_or_build(config: Config, runtime: Runtime, verify: bool) -> Path:
    source = _open_in_turn(config.data, config.seed, runtime, verify)
    identity = _identity(config.data, config.tokenizer, source)
    folder = Path(config.data.cache_dir) / _fingerprint(identity)
    if _is_finished(folder, runtime) and not _damaged(folder, runtime):
        return folder
    with runtime.fail_together():
        if runtime.is_main:
            make_folder(folder, "data.cache_dir")
    cleaning = Cleaning.of(config.data)
    builder = TokenStoreBuilder(folder, source, config.tokenizer, config.data.documents_per_shard, cleaning)
    with _locked(folder, runtime):
        if not _is_finished(folder, runtime):
            _build(builder, identity, config.data.num_proc, runtime)
            if dropped := read_meta(folder).get("dropped"):
                logger.info(f"dropped documents: {describe_dropped(dropped)}")
        elif damaged := _damaged(folder, runtime):
            logger.info(f"{folder}: rebuilding {len(damaged)} damaged shard(s)")
            with runtime.fail_together():
                if runtime.is_main:
                    builder.remake(damaged, read_meta(folder))
    return folder


def _copy_to_node(folder: Path, cache: Path, runtime: Runtime) -> Path:
    """Return the store's copy on the node's local disk, written by its first rank. Collective."""
    with runtime.fail_together():
        if runtime.is_local_main:
            copy_store(folder, cache)
    return cache / str(read_meta(folder)["fingerprint"])


def _damaged(folder: Path, runtime: Runtime) -> list[int]:
    """Return the numbers of the shards that do not match their checksums, verified by all ranks. Collective."""
    local: list[int] = []
    with runtime.fail_together():
        meta = read_meta(folder)
        local = damaged_shards(folder, meta, range(runtime.rank, meta["num_shards"], runtime.world_size))
    return sorted(i for of_rank in runtime.all_gather_object(local) for i in of_rank)


def _is_finished(folder: Path, runtime: Runtime) -> bool:
    return runtime.broadcast_object((folder / "meta.json").exists())


@contextmanager
def _locked(folder: Path, runtime: Runtime) -> Iterator[None]:
    """Hold the lock of a store: other runs wait, then use the store. The lock ends with its process."""
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
        logger.info(f"waiting for another run that is building {folder} ...")
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"{lock.lock_file}: cannot be locked ({error.strerror}): set data.cache_dir to a writable folder"
        ) from None


def _open_in_turn(data: DataConfig, seed: int, runtime: Runtime, verify: bool) -> Source:
    """Open the source on rank 0 first: it hashes the content, and the other ranks read the hashes from the cache."""
    source: Source | None = None
    for turn in (True, False):
        with runtime.fail_together():
            if runtime.is_main is turn:
                whole = cut_test_split(open_source(data, verify and turn), data.test_pct)
                source = limit_documents(whole, data.max_documents, seed)
    assert source is not None
    for notice in source.notices:
        logger.warning(notice)
    return source


def _identity(data: DataConfig, tokenizer: TokenizerConfig, source: Source) -> dict[str, Any]:
    """Return all that the bytes of the store depend on."""
    return {
        "format": FORMAT,
        "source": {"type": data.source, **source.identity},
        "tokenizer": _tokenizer_identity(tokenizer),
        "documents_per_shard": data.documents_per_shard,
        **({"cleaning": cleaning} if (cleaning := Cleaning.of(data).identity) else {}),
        "versions": {package: version(package) for package in _tokenizer_packages(tokenizer)},
    }


def _tokenizer_identity(tokenizer: TokenizerConfig) -> dict[str, Any]:
    """Return the config of a tokenizer, with the hash of its model instead of the path."""
    identity = dict(vars(tokenizer))
    if tokenizer.type == "word":
        return {key: value for key, value in identity.items() if key not in SENTENCEPIECE_KEYS}
    if tokenizer.sp_model is not None:
        try:
            identity["sp_model"] = xxhash.xxh3_64_hexdigest(Path(tokenizer.sp_model).read_bytes())
        except OSError as error:
            raise UserError(f"tokenizer.sp_model={tokenizer.sp_model}: cannot be read ({error.strerror})") from None
    return identity


def _tokenizer_packages(tokenizer: TokenizerConfig) -> tuple[str, ...]:
    """Return the packages whose versions the tokens depend on."""
    return ("fastai", "spacy") if tokenizer.type == "word" else ("fastai", "sentencepiece")


def _fingerprint(identity: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(identity, sort_keys=True).encode())[:16]


def _build(builder: TokenStoreBuilder, identity: dict[str, Any], num_proc: int, runtime: Runtime) -> None:
    shards = range(runtime.rank, len(builder.shards), runtime.world_size)
    with runtime.fail_together():
        builder.hash_documents(shards, num_proc, shown=runtime.is_main)
    with runtime.fail_together():
        if runtime.is_main:
            builder.shards.find_duplicates()
            builder.train_tokenizer()
    with runtime.fail_together():
        builder.tokenize(shards, num_proc, shown=runtime.is_main)
    with runtime.fail_together():
        if runtime.is_main:
            builder.merge()
    with runtime.fail_together():
        builder.map(shards, num_proc)
    with runtime.fail_together():
        if runtime.is_main:
            builder.finish(identity)


def _check_tokenizer(store: TokenStore, tokenizer: TokenizerConfig) -> None:
    """Raise UserError if new texts would be tokenized differently from those of the store."""
    for key in ("type", "lang", "rules"):
        old, new = store.meta["tokenizer"][key], getattr(tokenizer, key)
        if old != new:
            raise UserError(
                f"{store.path} was made with tokenizer.{key}={old}, but the config has {new}: set tokenizer.{key}={old}, or "
                f"prepare the texts again"
            )


def _check_subset(store: TokenStore, data: DataConfig) -> None:
    """Raise UserError if the config selects documents that the store was not made with."""
    made_with = {**store.meta.get("source", {}), **store.meta.get("cleaning", {})}
    for key in ("test_pct", "max_documents", *KEYS.values()):
        new, old = getattr(data, key), made_with.get(key)
        unset = "false" if new is True else "null"
        if new not in (None, False) and new != old:
            raise UserError(
                f"data.{key}={new}: {store.path} was made with {unset if old is None else old}: set it to {unset}, "
                f"or prepare the texts again without data.token_store"
            )


def summarize(store: TokenStore) -> str:
    """Return documents, tokens, vocabulary and classes of a store in one line."""
    meta = store.meta
    unknown = ", ".join(f"{meta['unknown'][split] / max(n, 1):.2%} of {split}" for split, n in meta["tokens"].items())
    left_out = {"empty": meta["num_empty"], "unreadable": meta["num_skipped"]}
    notes = "".join(f" ({number:,} {reason} left out)" for reason, number in left_out.items() if number)
    notes += f" (dropped {describe_dropped(meta['dropped'])})" if "dropped" in meta else ""
    return (
        f"texts: {meta['num_documents']:,} documents{notes}, {meta['num_tokens']:,} tokens, "
        f"{meta['longest']:,} in the longest; vocabulary {meta['vocab_size']:,}, unknown {unknown}; "
        f"{int((store.labels != NO_LABEL).sum()):,} labelled with {_classes(store)} ({store.path})"
    )


def _classes(store: TokenStore) -> str:
    """Return the number of classes and the largest ones, among which a misspelt label shows."""
    counts = np.bincount(store.labels[store.labels != NO_LABEL], minlength=len(store.label_names))
    largest = np.argsort(-counts, kind="stable")[:MAX_NAMED_CLASSES]
    named = ", ".join(f"{store.label_names[i]} {counts[i]:,}" for i in largest)
    more = ", ..." if len(counts) > MAX_NAMED_CLASSES else ""
    return f"{len(counts)} classes" + (f": {named}{more}" if named else "")
