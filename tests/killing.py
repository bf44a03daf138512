"""Runs that are started, watched from outside, and killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import forked
import torch
from conftest import ROOT
from safetensors.torch import load_file

from ulmfit_dist.tracking.wandb_files import records

STAGES = ("lm", "classifier")
BY_THE_CLOCK = ("_per_second", "_seconds", "communication_mb", "memory_gb")
"""Suffixes of metrics that differ between any two runs."""


def start(words: Sequence[object], processes: int, notes: Path, *options: str, real: bool = False) -> subprocess.Popen[str]:
    """`ulmfit-dist WORDS` on several ranks, which note what they read in a folder; new interpreters if `real`."""
    config = str(ROOT / "configs/accelerate/multi_gpu.yaml")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", str(processes), *options]
    notes.mkdir(exist_ok=True)
    command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "tests/recorded.py"), str(notes)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    popen = forked.real_popen if real else forked.popen
    return popen([*command, *map(str, words), "--verbose"], ROOT, environment, subprocess.PIPE, subprocess.PIPE)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The ranks that a launcher has started, in order; itself where it started none."""
    children = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _parent(path) == process.pid]
    ranks = {_rank(child): child for child in children}
    return [ranks[rank] for rank in sorted(rank for rank in ranks if rank is not None)] or [process.pid]


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _rank(process: int) -> int | None:
    """From its environment, or from the name that the fork server has given it."""
    try:
        name = Path(f"/proc/{process}/comm").read_text()
        if name.startswith("rank "):
            return int(name[5:])
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(item[5:]) for item in environment if item.startswith(b"RANK=")), None)


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the launcher and all its ranks, at once."""
    for pid in {process.pid, *ranks_of(process)}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.communicate()


def steps_noted(notes: Path) -> int:
    """Number of lines that the processes have noted so far."""
    return sum(path.read_bytes().count(b"\n") for path in notes.glob("*.txt"))


def rows_read(notes: Path) -> Iterator[tuple[tuple[str, int, int], str]]:
    """((stage, step, row), token ids) as noted; a line that a kill cut short is left out."""
    for path in sorted(notes.glob("*.txt")):
        for line in path.read_text().splitlines(keepends=True):
            words = line.split()
            if line.endswith("\n") and len(words) == 4:
                yield (words[0], int(words[1]), int(words[2])), words[3]


def metrics(run: Path) -> list[dict]:
    """The lines of metrics.jsonl, without what depends on the clock."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: value for key, value in line.items() if not key.endswith(BY_THE_CLOCK)} for line in lines]


def history(*paths: Path) -> list[dict]:
    """The rows of W&B's history in its files, one file after the other."""
    actual = (record.history for path in paths for record in records(path) if record.HasField("history"))
    return [{(i.key or i.nested_key[0]): json.loads(i.value_json) for i in history.item} for history in actual]


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run / stage / "model.safetensors")


def same_bits(run: Path, other: Path) -> bool:
    """Return True if two runs ended with the same models."""
    pairs = [(weights(run, stage), weights(other, stage)) for stage in STAGES]
    return all(torch.equal(ours[name], reference[name]) for ours, reference in pairs for name in reference)


def wait_for_training(process: subprocess.Popen[str], notes: Path) -> float:
    """Until the process has begun a training step; returns when that was."""
    noted = steps_noted(notes)
    while steps_noted(notes) == noted and process.poll() is None:
        time.sleep(0.005)
    return time.monotonic()


def wait_for_step(process: subprocess.Popen[str], notes: Path, stage: str, step: int) -> None:
    """Until a training step is about to be made that none of the runs before has come to."""
    mark = f"\n{stage} {step} ".encode()
    while not any(mark in path.read_bytes() for path in notes.glob("*.txt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def finish(process: subprocess.Popen[str]) -> str:
    """Return the output of a process that must succeed."""
    output, errors = process.communicate()
    assert process.returncode == 0, output + errors
    return output + errors
