"""What checkpoints cost: a language model trained with them and without, in turn, each time by a command of its own.

    python -m benchmarks.checkpoint CONFIG [key=value ...] [--rounds 5] [--every-minutes 0.25] [--processes 2]

Compared is the time of the stage, validation and the end of its last save included. The one run saves at the given interval
and at the end of each epoch; the other never, and its ranks do not vote on it. An interval shorter than the default shows
what runs of minutes else could not: the cost of a save, several times over. Printed as well is the stall of a save, the time
that training waits while rank 0 copies its state; and both for an AWD-LSTM of full size, without training it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.machine import machine
from ulmfit_dist.cli import main as command
from ulmfit_dist.config import LMConfig, ModelConfig
from ulmfit_dist.model.awd_lstm import build_language_model
from ulmfit_dist.training.checkpoints.callback import CheckpointCallback
from ulmfit_dist.training.checkpoints.folder import Content, StageFolder
from ulmfit_dist.training.checkpoints.snapshot import _copied

FULL_SIZE = 60_000


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        sys.exit(child(sys.argv[2] == "with", Path(sys.argv[3]), sys.argv[4:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="CONFIG [key=value ...]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--every-minutes", type=float, default=0.25)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    print(f"{machine()}, {args.processes} process(es) of one thread", flush=True)
    print(f"a checkpoint every {args.every_minutes:g} minutes, and at the end of each epoch", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), args.words, args.rounds, args.every_minutes, args.processes)
        full_size(Path(folder))


def compare(folder: Path, words: list[str], rounds: int, every_minutes: float, processes: int) -> None:
    """Rounds of one run with checkpoints and one without, in alternating order."""
    words = [*words, f"runs_dir={folder}", f"checkpoint.every_minutes={every_minutes}", "tracking.wandb=disabled"]
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    stalls: list[float] = []
    for number in range(rounds):
        for kind in ("with", "without") if number % 2 == 0 else ("without", "with"):
            found = train(kind, folder / "stalls.json", words, processes)
            seconds[kind].append(json.loads(next(folder.glob("*/summary.json")).read_text())["seconds"]["lm"])
            stalls += found
            print(f"round {number + 1} {kind:<8}{seconds[kind][-1]:8.1f} s  {len(found)} saves", flush=True)
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    slowdowns = [a / b - 1 for a, b in zip(seconds["with"], seconds["without"], strict=True)]
    print(f"median: {medians['with']:.1f} s with, {medians['without']:.1f} s without")
    print(f"slowdown: {medians['with'] / medians['without'] - 1:.2%}; by round " + ", ".join(f"{s:.2%}" for s in slowdowns))
    print(f"stall of a save: median {statistics.median(stalls):.3f} s, longest {max(stalls):.3f} s, of {len(stalls)}")


def train(kind: str, notes: Path, words: list[str], processes: int) -> list[float]:
    """One run of the language model; the stalls of its saves."""
    launcher = [sys.executable]
    if processes > 1:
        accelerate = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/multi_gpu.yaml"]
        launcher += [*accelerate, "--num_processes", str(processes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "benchmarks.checkpoint", "child", kind, str(notes), "lm", *words, "--fresh"]
    subprocess.run([*launcher, *arguments], env=environment, check=True, capture_output=True)
    return list(json.loads(notes.read_text()))


def child(saves: bool, notes: Path, words: list[str]) -> int:
    """A command of ours that notes its stalls, or saves nothing."""
    finish = CheckpointCallback.finish

    def finish_and_note(callback: CheckpointCallback) -> None:
        finish(callback)
        if callback.runtime.is_main:
            notes.write_text(json.dumps(callback.stalls))

    def finish_nothing(callback: CheckpointCallback) -> None:
        if callback.runtime.is_main:
            notes.write_text("[]")

    setattr(CheckpointCallback, "finish", finish_and_note if saves else finish_nothing)  # noqa: B010
    if not saves:
        for event in ("before_train", "after_train", "before_validate", "after_batch", "after_epoch"):
            setattr(CheckpointCallback, event, lambda callback: None)
    return command(words)


def full_size(folder: Path) -> None:
    """Copy and write the state of an AWD-LSTM of 60,000 words, with two moments for each parameter."""
    model = build_language_model(FULL_SIZE, ModelConfig(), LMConfig())
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state: dict[str, Any] = {"position": SimpleNamespace(stage_step=1).__dict__}
    moments = {f"{name}/{key}": torch.randn_like(p) for name, p in parameters.items() for key in ("grad_avg", "sqr_avg")}
    stalls, writes = [], []
    for _ in range(5):
        started = time.perf_counter()
        tensors = {"model": _copied(parameters), "optimizer": _copied(moments), "hidden_states": {}}
        copied = time.perf_counter()
        path = StageFolder(folder / "full", "lm").write(Content(tensors, state), keep=1)
        stalls.append(copied - started)
        writes.append(time.perf_counter() - copied)
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    print(
        f"AWD-LSTM of {FULL_SIZE:,} words, {size:,.0f} MiB a checkpoint: stall {statistics.median(stalls):.2f} s, "
        f"then {statistics.median(writes):.1f} s behind the training (medians of five)"
    )


if __name__ == "__main__":
    main()
