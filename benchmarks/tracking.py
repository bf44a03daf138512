"""What W&B costs when its server is gone: a language model trained without W&B, and online with a dead server, in turn.

    python -m benchmarks.tracking CONFIG [key=value ...] [--rounds 5] [--processes 2]

Three kinds of runs, each a command of its own: `disabled`; `refused`, where nothing listens at the server's address; and
`silent`, where something takes connections and never answers. Compared is the time of the stage; the time of the whole
command is printed beside it. What each run said on standard error is printed once.
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

KINDS = ("disabled", "refused", "silent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="CONFIG [key=value ...]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    print(f"{machine()}, {args.processes} process(es) of one thread", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args.words, args.rounds, args.processes)


def compare(folder: Path, words: list[str], rounds: int, processes: int) -> None:
    """Rounds of one run of each kind, each round beginning with another."""
    stage: dict[str, list[float]] = {kind: [] for kind in KINDS}
    told: dict[str, str] = {}
    for number in range(rounds):
        for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
            began = time.perf_counter()
            told[kind] = train(kind, folder, words, processes)
            whole = time.perf_counter() - began
            stage[kind].append(json.loads(next(folder.glob("*/summary.json")).read_text())["seconds"]["lm"])
            print(f"round {number + 1} {kind:<10}{stage[kind][-1]:8.1f} s  (command {whole:.1f} s)", flush=True)
    medians = {kind: statistics.median(seconds) for kind, seconds in stage.items()}
    print("median: " + ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in medians.items()))
    for kind in KINDS[1:]:
        by_round = ", ".join(f"{a / b - 1:.2%}" for a, b in zip(stage[kind], stage["disabled"], strict=True))
        print(f"{kind}: {medians[kind] / medians['disabled'] - 1:.2%} slower; by round {by_round}")
        print(f"{kind} said: {told[kind].strip()}")


def train(kind: str, folder: Path, words: list[str], processes: int) -> str:
    """One run of the language model; what it said on standard error."""
    launcher = ["-m", "ulmfit_dist.launch", "--config_file", "configs/accelerate/multi_gpu.yaml"]
    launcher = [*launcher, "--num_processes", str(processes)] if processes > 1 else []
    mode = "disabled" if kind == "disabled" else "online"
    arguments = ["-m", "ulmfit_dist", "lm", *words, f"runs_dir={folder}", f"tracking.wandb_mode={mode}", "--fresh"]
    with dead_server(listens=kind == "silent") as address:
        server = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "x" * 40}
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **server}
        command = [sys.executable, *launcher, *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr


@contextmanager
def dead_server(listens: bool) -> Iterator[str]:
    """The address of a server that never answers, or of none."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        if listens:
            door.listen(1000)
        yield f"http://127.0.0.1:{door.getsockname()[1]}"


if __name__ == "__main__":
    main()
