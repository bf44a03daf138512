"""Cost of checkpoints: the quick start's language model trained with and without them, on two ranks of one thread.

The figure is the duration of the stage, including validation and the end of its last save. One run saves at the given
interval and at the end of each epoch; the other never saves, and its ranks do not vote on it. An interval shorter than the
default makes the cost of a save visible in a run of a minute. The stall of a save is the time that training waits while
rank 0 copies its state. `python -m benchmarks.checkpoint` prints it for a full-size AWD-LSTM, without training.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Benchmark, Measured
from benchmarks.machine import machine
from benchmarks.scaling import run_ranks
from ulmfit_dist.checkpointing.callback import CheckpointCallback
from ulmfit_dist.checkpointing.learner_state import _copied
from ulmfit_dist.checkpointing.manager import Checkpoint, CheckpointManager
from ulmfit_dist.cli.main import main as command
from ulmfit_dist.config.schema import LMConfig, ModelConfig
from ulmfit_dist.models.networks import build_language_model

INTERVALS = {"every 5 minutes": 5, "every 15 seconds": 0.25}
"""Checkpoint interval of each case, in minutes."""
TRAINING = [
    "benchmarks/bbc_news.yaml",
    "data.max_documents=1100",
    "lm.phases=[{epochs: 1, lr: 1e-2}]",
    "tracking.wandb_mode=disabled",
]
FULL_SIZE = 60_000
"""Vocabulary size of the full-size model."""


def contender(case: str, saving: str) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        argv = [*TRAINING, f"runs_dir={folder}", f"checkpoint.interval_minutes={INTERVALS[case]}"]
        run_ranks(["-m", "benchmarks.checkpoint", saving, str(folder / "stalls.json"), "lm", *argv], num_ranks=2)
        seconds = json.loads(next(folder.glob("*/summary.json")).read_text())["seconds"]["lm"]
        stalls = json.loads((folder / "stalls.json").read_text())
    if not stalls:
        return Measured(seconds)
    median, longest = statistics.median(stalls) * 1000, max(stalls) * 1000
    return Measured(seconds, {"saves": len(stalls), "stall ms": median, "longest ms": longest})


def rank(saves: bool, output: Path, argv: list[str]) -> int:
    """Run a command that records its stalls, or saves nothing."""
    finish = CheckpointCallback.finish

    def finish_and_record(callback: CheckpointCallback) -> None:
        if saves:
            finish(callback)
        if callback.runtime.is_main:
            output.write_text(json.dumps(callback.stalls))

    setattr(CheckpointCallback, "finish", finish_and_record)  # noqa: B010
    if not saves:
        for event in ("before_train", "after_train", "before_validate", "after_batch", "after_epoch", "save"):
            setattr(CheckpointCallback, event, lambda callback: None)
    return command(argv)


def full_size(folder: Path) -> str:
    """Copy and write the state of an AWD-LSTM of 60,000 words, with two moments for each parameter."""
    model = build_language_model(FULL_SIZE, ModelConfig(), LMConfig())
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    state: dict[str, Any] = {"train_state": {"stage_step": 1}}
    moments = {f"{name}/{key}": torch.randn_like(p) for name, p in parameters.items() for key in ("grad_avg", "sqr_avg")}
    stalls, writes = [], []
    for _ in range(5):
        started = time.perf_counter()
        tensors = {"model": _copied(parameters), "optimizer": _copied(moments), "hidden_states": {}}
        copied = time.perf_counter()
        path = CheckpointManager(folder, "lm").write(Checkpoint(tensors, state), keep_latest=1)
        stalls.append(copied - started)
        writes.append(time.perf_counter() - copied)
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    return (
        f"AWD-LSTM of {FULL_SIZE:,} words, {size:,.0f} MiB per checkpoint: stall {statistics.median(stalls):.2f} s, "
        f"then {statistics.median(writes):.1f} s in the background (medians of five)"
    )


BENCHMARK = Benchmark(
    title="the quick start's language model on 1,100 articles, two ranks of one thread, checkpoints with and without",
    unit="seconds of training",
    contenders={
        "without": lambda case: contender(case, "without"),
        "with": lambda case: contender(case, "with"),
    },
    cases=list(INTERVALS),
    baseline="without",
    higher_is_better=False,
)

if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(rank(sys.argv[1] == "with", Path(sys.argv[2]), sys.argv[3:]))
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        print(full_size(Path(temporary) / "full"))
