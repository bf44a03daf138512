"""Duration and peak memory of `ulmfit-dist prepare`, with one worker and with two, for a corpus and for ten copies of it.

    python -m benchmarks.prepare FOLDER [--copies 10] [--repeats 3]

FOLDER contains Parquet files with a column `text`. Each copy of a text differs in one word, so that a cache does not
recognize it. Seconds are those of the whole command: median, minimum and maximum of runs with one worker and with two in
turn. Memory is that of the largest process: anonymous memory, because the system can drop mapped files, and resident
memory. The last runs use an existing store.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import machine


class Peak(NamedTuple):
    """Memory of one process, in bytes."""

    anonymous: int = 0
    resident: int = 0


class Measured(NamedTuple):
    """Finished command: wall-clock seconds, peak memory of its largest process, and output."""

    seconds: float
    peak: Peak
    printed: str


def write_copies(folder: Path, copies: int, target: Path) -> None:
    """Write Parquet files with several copies of all texts."""
    target.mkdir()
    for copy in range(copies):
        for file in sorted(folder.glob("*.parquet")):
            texts = [_changed(text, copy) for text in pq.read_table(file)["text"].to_pylist()]
            pq.write_table(pa.table({"text": texts}), target / f"{copy}-{file.name}", row_group_size=10_000)


def _changed(text: str, copy: int) -> str:
    words = text.split(" ")
    words[len(words) // 2] += str(copy) if copy else ""
    return " ".join(words)


def measure(command: list[str]) -> Measured:
    """Run a command, and sample the memory of its processes ten times per second."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = Peak()
    while process.poll() is None:
        for anonymous, resident in map(_memory, _family(process.pid)):
            peak = Peak(max(peak.anonymous, anonymous), max(peak.resident, resident))
        time.sleep(0.1)
    seconds = time.perf_counter() - started
    printed = process.stdout.read() if process.stdout else ""
    if process.returncode:
        sys.exit(printed)
    return Measured(seconds, peak, printed)


def _family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from _family(int(child))


def _memory(pid: int) -> Peak:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return Peak()
    anonymous, resident = (re.search(rf"{key}:\s+(\d+) kB", status) for key in ("RssAnon", "VmHWM"))
    return Peak(int(anonymous[1]) * 1024 if anonymous else 0, int(resident[1]) * 1024 if resident else 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{args.folder.name}; {machine()}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")  # the conversion to Arrow is measured too
        (folder / "recipe.yaml").write_text("{}\n")
        write_copies(args.folder, 1, folder / "x1")
        write_copies(args.folder, args.copies, folder / f"x{args.copies}")
        once = _compare(folder, 1, args.repeats)
        many = _compare(folder, args.copies, args.repeats)
        _report(1, "existing store", [_prepare(folder, 1, workers=2, fresh=False) for _ in range(args.repeats)])
    for name, of_one, of_many in zip(
        ("anonymous memory", "resident memory"), _largest(once[1]), _largest(many[1]), strict=True
    ):
        print(f"one worker, {name} of {args.copies} x against 1 x: {of_many / of_one:.2f}")
    print(f"{args.copies} x, seconds of one worker against two: {_seconds(many[1]) / _seconds(many[2]):.2f}")


def _compare(folder: Path, copies: int, repeats: int) -> dict[int, list[Measured]]:
    """Run `prepare` with one worker and with two in turn. Returns the measurements by number of workers."""
    _report(copies, "1 worker, and conversion to Arrow", [_prepare(folder, copies, workers=1)])
    measured: dict[int, list[Measured]] = {1: [], 2: []}
    for _ in range(repeats):
        for workers, runs in measured.items():
            runs.append(_prepare(folder, copies, workers))
    for workers, runs in measured.items():
        _report(copies, f"{workers} worker(s)", runs)
    return measured


def _prepare(folder: Path, copies: int, workers: int, fresh: bool = True) -> Measured:
    cache = folder / f"cache{copies}"
    if fresh:
        shutil.rmtree(cache, ignore_errors=True)
    argv = ["prepare", folder / "recipe.yaml", "data.source=parquet", f"data.path={folder / f'x{copies}'}"]
    argv += [
        "data.label_col=null",
        "data.splits={train: '*.parquet'}",
        f"data.cache_dir={cache}",
        f"data.num_proc={workers}",
    ]
    return measure([sys.executable, "-m", "ulmfit_dist", *map(str, argv)])


def _report(copies: int, name: str, runs: list[Measured]) -> None:
    seconds = [run.seconds for run in runs]
    anonymous, resident = _largest(runs)
    documents = re.search(r"[\d,]+ documents, [\d,]+ tokens", runs[0].printed)
    print(
        f"{copies:3} x, {name}: {_seconds(runs):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), largest process "
        f"{anonymous / 2**20:,.0f} MiB anonymous, {resident / 2**20:,.0f} MiB resident; "
        f"{documents[0] if documents else runs[0].printed}",
        flush=True,
    )


def _seconds(runs: list[Measured]) -> float:
    return statistics.median(run.seconds for run in runs)


def _largest(runs: list[Measured]) -> Peak:
    return Peak(max(run.peak.anonymous for run in runs), max(run.peak.resident for run in runs))


if __name__ == "__main__":
    main()
