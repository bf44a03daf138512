"""Checks of the folders that a run writes: permissions, atomic renames, locks, visibility on all ranks, free space."""

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
"""Size of the probe file, in bytes."""
VISIBILITY_TIMEOUT = 5.0
"""Time in which a file of rank 0 must appear on other nodes, in seconds: network file systems cache folders."""
BYTES_PER_PARAMETER = 12
"""Size of a checkpoint per parameter, in bytes: the weight and Adam's two averages in fp32."""


def folders(context: Context) -> dict[str, Path]:
    """Return the folders that the run writes, by config key."""
    config = context.config
    paths = {"runs_dir": config.run_dir}
    if config.data.token_store is None:
        paths["data.cache_dir"] = Path(config.data.cache_dir)
    return paths


def writable(key: str) -> Callable[[Context], Finding]:
    """Return the check of one folder: a file is written, synced, renamed over another, read back and locked."""

    def check(context: Context) -> Finding:
        folder = folders(context).get(key)
        if folder is None:
            return skipped(f"data.token_store={context.config.data.token_store} is read as it is")
        fix = f"set {key} to a folder that every rank can write, or free space on its disk"
        try:
            _make(folder, context)
            probe = folder / f".doctor-{context.rank}-{os.getpid()}-{secrets.token_hex(4)}"
            return _try(probe, folder, fix)
        except OSError as error:
            return failure(f"{folder}: not writable: {error.strerror or error}", fix)

    return check


def _make(folder: Path, context: Context) -> None:
    """Create a folder with its parents, and record the new ones."""
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
            return failure(f"{folder}: a file that was renamed over another has different content", fix)
        if not _locks(lock):
            return warning(
                f"{folder}: writable, but file locks have no effect",
                "start this run only once at a time, or set another folder",
            )
        return ok(f"{folder}: written, renamed, locked; 1 MiB synced in {seconds * 1000:.0f} ms")
    finally:
        for path in (probe, temporary, lock):
            with suppress(OSError):
                path.unlink()


def _locks(path: Path) -> bool:
    """Return whether a file lock excludes a second one."""
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
    """Return the check that all ranks see the same folder: rank 0 writes a file that the others read. Collective."""

    def check(context: Context) -> Finding:
        if context.world_size == 1:
            return skipped("one process")
        folder = folders(context).get(key)
        if folder is None:
            return skipped(f"data.token_store={context.config.data.token_store} is read as it is")
        written = _write_token(folder) if context.rank == 0 else None
        name, token = context.monitor.exchange(f"{key} written", written)[0] or ("", "")
        is_visible = bool(name) and _reads(folder / name, token)
        visible = context.monitor.exchange(f"{key} read", is_visible)
        if context.rank == 0 and name:
            with suppress(OSError):
                (folder / name).unlink()
        if not name:
            return skipped(f"{folder}: rank 0 cannot write there")
        if not is_visible:
            return failure(
                f"{folder}: a file of rank 0 is not visible on {context.monitor.names[context.rank]}",
                f"set {key} to a folder on a file system that all nodes share",
            )
        return ok(f"{folder}: a file of rank 0 is visible on {sum(visible)} of {len(visible)} ranks")

    return check


def _write_token(folder: Path) -> tuple[str, str] | None:
    name, token = f".doctor-shared-{os.getpid()}", secrets.token_hex(16)
    try:
        (folder / name).write_text(token, encoding="utf-8")
    except OSError:
        return None
    return name, token


def _reads(path: Path, token: str) -> bool:
    deadline = time.monotonic() + VISIBILITY_TIMEOUT
    while True:
        with suppress(OSError):
            if path.read_text(encoding="utf-8") == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def check_disk(context: Context) -> Finding:
    """Compare free disk space with the size of the run's checkpoints and models."""
    from ulmfit_dist.doctor.synthetic import num_parameters

    config, folder = context.config, context.config.run_dir
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    one = num_parameters(config) * BYTES_PER_PARAMETER
    stages = len(config.stages)
    needed = stages * (one * (config.checkpoint.keep_latest + 2) + one // 3)  # kept, best, being written; exported model
    minimum = 2 * one
    details = f"{existing}: {_gigabytes(free)} free; the run writes up to {_gigabytes(needed)}"
    fix = f"free {_gigabytes(needed - free)}, set runs_dir to another disk, or lower checkpoint.keep_latest"
    if free < minimum:
        return failure(details, fix)
    return warning(details, fix) if free < needed else ok(details)


def remove_created(context: Context) -> None:
    """Remove the folders that the checks have created, if they are empty."""
    for folder in sorted(context.created, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):
            folder.rmdir()


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
