"""`ulmfit-dist prepare`, whole: seconds and peak memory, on one worker and on two, of a corpus and of ten times as much.

    python -m benchmarks.prepare FOLDER [--copies 10]

FOLDER holds Parquet files with a column `text`. In each copy of a text one word is another, so that the copies are not the
same to a cache. Memory is the largest that the system saw in one process: anonymous, for mapped files are the system's to
drop, and in all. The last line is a store that is found instead of made.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.tokenization import machine


class Peak(NamedTuple):
    """Memory of one process, in bytes: anonymous, and in all."""

    anonymous: int = 0
    resident: int = 0


class Measured(NamedTuple):
    """A finished command: its wall-clock seconds, the peaks of its largest process, and what it printed."""

    seconds: float
    peak: Peak
    printed: str


def write_copies(folder: Path, copies: int, target: Path) -> None:
    """Write Parquet files of all texts, so many times over."""
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
    """Run a command; look at its processes ten times a second."""
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
    args = parser.parse_args()
    print(f"{args.folder.name}; {machine()}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")  # the conversion to Arrow is measured too
        (folder / "recipe.yaml").write_text("{}\n")
        for copies in (1, args.copies):
            write_copies(args.folder, copies, folder / f"x{copies}")
            _prepare(folder, copies, workers=1, cache="converted")  # makes the Arrow files
            for workers in (1, 2):
                _prepare(folder, copies, workers, cache=f"on{workers}")
        _prepare(folder, 1, workers=1, cache="on1", note="found")


def _prepare(folder: Path, copies: int, workers: int, cache: str, note: str = "") -> None:
    words = [
        "prepare",
        folder / "recipe.yaml",
        "data.source=parquet",
        f"data.path={folder / f'x{copies}'}",
        "data.label=null",
    ]
    words += ["data.splits={train: '*.parquet'}", f"data.cache={folder / cache}", f"runtime.num_workers={workers}"]
    seconds, peak, printed = measure([sys.executable, "-m", "ulmfit_dist", *map(str, words)])
    documents = re.search(r"[\d,]+ documents, [\d,]+ tokens", printed)
    print(
        f"{copies:3} x, {workers} worker(s), {note or cache:9}: {seconds:6.1f} s, largest process "
        f"{peak.anonymous / 2**20:6,.0f} MiB anonymous, {peak.resident / 2**20:6,.0f} MiB in all; "
        f"{documents[0] if documents else printed}",
        flush=True,
    )


if __name__ == "__main__":
    main()
