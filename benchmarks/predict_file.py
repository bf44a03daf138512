"""`predict --file` of a CSV: peak memory by number of rows, rows per second, and a run that is killed and resumed.

    python -m benchmarks.predict_file RUN TEXTS.parquet

The CSV has an id, a note and a text of at most 500 characters per row, from the column `text` of TEXTS.parquet, repeated as
often as needed. The peak is the largest resident memory of a rank. The last lines are of a job on two ranks that is killed
(SIGKILL) at about a third of its blocks, then resumed on one; its output is compared with that of one rank, row by row.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet

from benchmarks.machine import machine

SIZES = (10_000, 100_000)
CHARACTERS = 500
CHILD = """
import resource, sys
from ulmfit_dist.cli.main import main
code = main(sys.argv[2:])
open(sys.argv[1] + "." + str(__import__("os").getpid()), "w").write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
sys.exit(code)
"""
"""Script of a rank: the command, then its peak memory in KiB."""


def write_csv(source: Path, path: Path, num_rows: int) -> None:
    """Write a CSV of this many rows."""
    texts = pyarrow.parquet.read_table(source, columns=["text"])["text"].to_pylist()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "note"])
        writer.writerows([f"{i:06d}", texts[i % len(texts)][:CHARACTERS], f"note {i}"] for i in range(num_rows))


def start(folder: Path, run: Path, source: Path, output: Path, ranks: int) -> subprocess.Popen[bytes]:
    """Start the command on several ranks, with one thread each."""
    (folder / "child.py").write_text(CHILD)
    launch = ["-m", "ulmfit_dist.launch", "--multi_gpu", "--num_processes", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launch, folder / "child.py", folder / f"peak{ranks}", "predict", run.absolute()]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    return subprocess.Popen([*map(str, command), "--file", source, "--output", output, "--quiet"], env=environment)


def measure(folder: Path, run: Path, source: Path, output: Path, ranks: int) -> tuple[float, float]:
    """Return seconds, and the largest peak of a rank in MiB."""
    for old in folder.glob(f"peak{ranks}.*"):
        old.unlink()
    begin = time.perf_counter()
    if start(folder, run, source, output, ranks).wait() != 0:
        raise SystemExit("predict failed")
    seconds = time.perf_counter() - begin
    return seconds, max(int(path.read_text()) for path in folder.glob(f"peak{ranks}.*")) / 1024


def children(process: int) -> Iterator[int]:
    """Yield the processes below a process, the lowest first."""
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        yield from children(int(child))
        yield int(child)


def kill_and_resume(folder: Path, run: Path, source: Path) -> str:
    """Return a line about a job that is killed on two ranks and resumed on one."""
    output = folder / "killed.csv"
    job = start(folder, run, source, output, 2)
    blocks = -(-SIZES[-1] // 2048)
    while len(list((folder / "killed.csv.parts").glob("part-*"))) < blocks // 3:
        time.sleep(0.05)
    for process in [*children(job.pid), job.pid]:
        os.kill(process, signal.SIGKILL)
    job.wait()
    done = len(list((folder / "killed.csv.parts").glob("part-*")))
    measure(folder, run, source, output, 1)
    with output.open(newline="") as file, (folder / f"{SIZES[-1]}-1.csv").open(newline="") as expected:
        rows, wanted = list(csv.reader(file)), list(csv.reader(expected))
    with source.open(newline="") as file:
        inputs = list(csv.reader(file))
    is_complete, is_equal = [row[:3] for row in rows] == inputs, rows == wanted
    return f"killed after {done} of {blocks} blocks, resumed on one: complete and in order {is_complete}, equal {is_equal}"


def main() -> None:
    """Print a line per number of ranks and rows, then that of the killed job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("texts", metavar="TEXTS.parquet", type=Path)
    args = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for num_rows in SIZES:
            write_csv(args.texts, folder / f"{num_rows}.csv", num_rows)
            for ranks in (1, 2):
                output = folder / f"{num_rows}-{ranks}.csv"
                seconds, peak = measure(folder, args.run, folder / f"{num_rows}.csv", output, ranks)
                figures = f"{seconds:6.1f} s, {num_rows / seconds:6,.0f} rows/s, peak {peak:,.0f} MiB"
                print(f"{num_rows:>8,} rows, {ranks} rank(s): {figures}", flush=True)
        print(kill_and_resume(folder, args.run, folder / f"{SIZES[-1]}.csv"))


if __name__ == "__main__":
    main()
