"""Checks of the folders that a run writes: writable, atomic renames, locks, shared by all ranks, room for the run."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ulmfit_dist.doctor.checks import Context, Finding, failure, ok, skipped, warning

PROBE_BYTES = 1 << 20
SECONDS_UNTIL_SEEN = 5.0
"""Seconds that a file of rank 0 may take to appear on other nodes: network file systems cache folders."""
BYTES_PER_PARAMETER = 12
"""Bytes of a checkpoint per parameter: the weight and Adam's two averages, fp32."""


def folders(context: Context) -> dict[str, Path]:
    """Folders that the run writes, by the key that sets them."""
    config = context.config
    found = {"runs_dir": config.run_dir}
    if config.data.token_store is None:
        found["data.cache_dir"] = Path(config.data.cache_dir)
    return found


def writable(key: str) -> Callable[[Context], Finding]:
    """The check of one folder: a file is written, synced, renamed over another, read back and locked."""

    def check(context: Context) -> Finding:
        folder = folders(context).get(key)
        if folder is None:
            return skipped(f"data.token_store={context.config.data.token_store} is read as it is")
        fix = f"set {key} to a folder that every rank can write, or free the disk that it lies on"
        try:
            _make(folder, context)
            probe = folder / f".doctor-{context.rank}-{os.getpid()}-{secrets.token_hex(4)}"
            return _try(probe, folder, fix)
        except OSError as error:
            return failure(f"{folder}: cannot be written: {error.strerror or error}", fix)

    return check


def _make(folder: Path, context: Context) -> None:
    """Make a folder with its parents, and note which of them are new."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    context.created += [path for path in new if path not in context.created]


def _try(probe: Path, folder: Path, fix: str) -> Finding:
    temporary, lock = probe.with_name(probe.name + ".tmp"), probe.with_name(probe.name + ".lock")
    content = secrets.token_bytes(PROBE_BYTES)
    try:
        started = time.perf_counter()
        probe.write_bytes(b"before")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(probe)
        seconds = time.perf_counter() - started
        if probe.read_bytes() != content or temporary.exists():
            return failure(f"{folder}: a file renamed over another is not what was written", fix)
        if not _locks(lock):
            return warning(
                f"{folder}: writable, but locks exclude nobody", "let nobody else train this run, or set another folder"
            )
        return ok(f"{folder}: written, renamed, locked; 1 MiB synced in {seconds * 1000:.0f} ms")
    finally:
        for path in (probe, temporary, lock):
            with suppress(OSError):
                path.unlink()


def _locks(path: Path) -> bool:
    """True where a lock keeps a second one out."""
    try:
        with FileLock(path, fallback_to_soft=False):
            try:
                with FileLock(path, timeout=0, fallback_to_soft=False):
                    return False
            except Timeout:
                return True
    except (NotImplementedError, OSError):
        return False


def shared(key: str) -> Callable[[Context], Finding]:
    """The check that all ranks see the same folder: rank 0 writes a file that the others must read. Collective."""

    def check(context: Context) -> Finding:
        if context.world_size == 1:
            return skipped("one process")
        folder = folders(context).get(key)
        if folder is None:
            return skipped(f"data.token_store={context.config.data.token_store} is read as it is")
        name, written = context.monitor.exchange(f"{key} written", _write_token(folder) if context.rank == 0 else None)[
            0
        ] or (
            "",
            "",
        )
        is_seen = bool(name) and _reads(folder / name, written)
        everyone = context.monitor.exchange(f"{key} read", is_seen)
        if context.rank == 0 and name:
            with suppress(OSError):
                (folder / name).unlink()
        if not name:
            return skipped(f"{folder}: rank 0 cannot write there")
        if not is_seen:
            return failure(
                f"{folder}: a file of rank 0 is not there on {context.monitor.names[context.rank]}",
                f"set {key} to a folder of a file system that all nodes share",
            )
        return ok(f"{folder}: a file of rank 0 is seen by {sum(everyone)} of {len(everyone)} ranks")

    return check


def _write_token(folder: Path) -> tuple[str, str] | None:
    name, token = f".doctor-shared-{os.getpid()}", secrets.token_hex(16)
    try:
        (folder / name).write_text(token, encoding="utf-8")
    except OSError:
        return None
    return name, token


def _reads(path: Path, token: str) -> bool:
    deadline = time.monotonic() + SECONDS_UNTIL_SEEN
    while True:
        with suppress(OSError):
            if path.read_text(encoding="utf-8") == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def check_disk(context: Context) -> Finding:
    """Free disk against the checkpoints and models of the run."""
    from ulmfit_dist.doctor.synthetic import num_parameters

    config, folder = context.config, context.config.run_dir
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    one = num_parameters(config) * BYTES_PER_PARAMETER
    stages = len(config.stages)
    needed = stages * (one * (config.checkpoint.keep_latest + 2) + one // 3)  # kept, the best, one being written; the export
    least = 2 * one
    found = f"{existing}: {_gigabytes(free)} free; the run writes up to {_gigabytes(needed)}"
    fix = f"free {_gigabytes(needed - free)}, or set runs_dir to another disk, or lower checkpoint.keep_latest"
    if free < least:
        return failure(found, fix)
    return warning(found, fix) if free < needed else ok(found)


def remove_created(context: Context) -> None:
    """Remove the folders that the checks have made, where nothing lies in them."""
    for folder in sorted(context.created, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            folder.rmdir()


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
