"""A copy of a token store on a node's own disk, for clusters whose shared file system is slow, or busy.

It is whole or not there: copied beside its place, compared with the checksums of `meta.json`, and renamed. A copy that lies
there already is compared in the same way, and made again where it differs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from filelock import FileLock

from ulmfit_dist.data.token_store import damaged_shards, read_meta
from ulmfit_dist.errors import UserError


def copy_store(store: Path, cache: Path) -> Path:
    """Copy a finished token store into a folder of this node, unless it is there; processes that meet here wait in turn.

    Returns:
        The copy's folder, named by the store's fingerprint.

    Raises:
        UserError: the folder cannot be written, has no room, or does not keep what is written there.
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
            f"({error.strerror or error}): name another folder of this node, or null to read it from where it is"
        ) from None
    return copy


def _replace(copy: Path, store: Path) -> None:
    temporary = copy.with_name(f".{copy.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        temporary.mkdir()
        for path in store.iterdir():
            shutil.copyfile(path, temporary / path.name)
        if not _is_copy(temporary, store):
            raise OSError("what was written is not what is read back")
        shutil.rmtree(copy, ignore_errors=True)
        temporary.rename(copy)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_copy(copy: Path, store: Path) -> bool:
    """Whether a folder holds all of a store, shards as their checksums say."""
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
