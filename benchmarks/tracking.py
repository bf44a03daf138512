"""Cost of W&B with a dead server: a language model trained without W&B, and online with a server that does not respond.

    python -m benchmarks.tracking CONFIG [key=value ...] [--rounds 5] [--processes 2]

Three cases run in turn, each as its own command: `disabled`; `refused`, in which nothing listens at the server's address;
and `silent`, in which a server accepts connections and never responds. The figure is the duration of the stage; that of the
whole command is printed as well. The standard error of each case is printed once.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.machine import machine

CASES = ("disabled", "refused", "silent")
"""Modes and servers of W&B to compare."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("argv", nargs="+", metavar="CONFIG [key=value ...]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    print(f"{machine()}, {args.processes} process(es) of one thread", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args.argv, args.rounds, args.processes)


def compare(folder: Path, argv: list[str], rounds: int, processes: int) -> None:
    """Run each case once per round, starting each round with a different one, and print the comparison."""
    stage: dict[str, list[float]] = {case: [] for case in CASES}
    messages: dict[str, str] = {}
    for i in range(rounds):
        for case in CASES[i % 3 :] + CASES[: i % 3]:
            started = time.perf_counter()
            messages[case] = train(case, folder, argv, processes)
            total = time.perf_counter() - started
            stage[case].append(json.loads(next(folder.glob("*/summary.json")).read_text())["seconds"]["lm"])
            print(f"round {i + 1} {case:<10}{stage[case][-1]:8.1f} s  (command {total:.1f} s)", flush=True)
    medians = {case: statistics.median(seconds) for case, seconds in stage.items()}
    print("median: " + ", ".join(f"{case} {seconds:.1f} s" for case, seconds in medians.items()))
    for case in CASES[1:]:
        by_round = ", ".join(f"{a / b - 1:.2%}" for a, b in zip(stage[case], stage["disabled"], strict=True))
        print(f"{case}: {medians[case] / medians['disabled'] - 1:.2%} slower; by round {by_round}")
        print(f"{case}, standard error: {messages[case].strip()}")


def train(case: str, folder: Path, argv: list[str], processes: int) -> str:
    """Train the language model once, and return the standard error of the command."""
    launcher = ["-m", "ulmfit_dist.launch", "--config_file", "configs/accelerate/multi_gpu.yaml"]
    launcher = [*launcher, "--num_processes", str(processes)] if processes > 1 else []
    mode = "disabled" if case == "disabled" else "online"
    arguments = ["-m", "ulmfit_dist", "lm", *argv, f"runs_dir={folder}", f"tracking.wandb_mode={mode}", "--fresh"]
    with dead_server(listens=case == "silent") as address:
        server = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "x" * 40}
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **server}
        command = [sys.executable, *launcher, *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr


@contextmanager
def dead_server(listens: bool) -> Iterator[str]:
    """Yield the address of a server that never responds, or at which nothing listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen(1000)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


if __name__ == "__main__":
    main()
