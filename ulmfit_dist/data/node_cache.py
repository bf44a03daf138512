"""Copy of a token store on a node's local disk, for clusters with a slow shared file system.

The copy is atomic: written to a temporary folder, compared with the checksums of `meta.json`, and renamed. An existing copy
is compared in the same way, and replaced if it differs. Trade-off: every start reads the whole copy once.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from ulmfit_dist.data.token_store import damaged_shards, read_meta
from ulmfit_dist.errors import UserError


def copy_store(store: Path, cache: Path) -> Path:
    """Copy a finished token store to a local folder, unless a valid copy exists; a file lock serializes processes.

    Returns:
        Folder of the copy, named by the store's fingerprint.

    Raises:
        UserError: the folder cannot be written, is full, or does not return what was written.
    """
    copy = cache / str(read_meta(store)["fingerprint"])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(copy.with_suffix(".lock")):
            if not _is_copy(copy, store):
                _replace(copy, store)
    except OSError as error:
        raise UserError(
            f"data.node_cache_dir={cache}: cannot hold a copy of {store}, {_megabytes(store)} MB "
            f"({error.strerror or error}): set it to another folder of this node, or to null to read the store directly"
        ) from None
    return copy


def _replace(copy: Path, store: Path) -> None:
    temporary = copy.with_name(f".{copy.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    try:
        temporary.mkdir()
        for path in store.iterdir():
            shutil.copyfile(path, temporary / path.name)
        if not _is_copy(temporary, store):
            raise OSError("the copy does not match its checksums")
        shutil.rmtree(copy, ignore_errors=True)
        temporary.rename(copy)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_copy(copy: Path, store: Path) -> bool:
    """Return whether a folder holds all files of a store, with shards that match their checksums."""
    names = [path.name for path in store.iterdir() if not path.name.startswith("shard-")]
    try:
        if any((copy / name).read_bytes() != (store / name).read_bytes() for name in names):
            return False
    except FileNotFoundError:
        return False
    meta = read_meta(store)
    return not damaged_shards(copy, meta, range(meta["num_shards"]))


def _megabytes(store: Path) -> int:
    return sum(path.stat().st_size for path in store.iterdir()) // 10**6
