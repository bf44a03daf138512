"""What checkpoints cost: the quick start's language model trained with them and without, on two ranks of one thread.

The figure is the time of the stage, validation and the end of its last save included. The one run saves at the given
interval and at the end of each epoch; the other never, and its ranks do not vote on it. An interval shorter than the default
shows what runs of a minute else could not: the cost of a save, several times over. The stall of a save is the time that
training waits while rank 0 copies its state. `python -m benchmarks.checkpoint` prints it for an AWD-LSTM of full size,
without training it.
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

EVERY_MINUTES = {"every 5 minutes": 5, "every 15 seconds": 0.25}
TRAINING = [
    "benchmarks/bbc_news.yaml",
    "data.max_documents=1100",
    "lm.phases=[{epochs: 1, lr: 1e-2}]",
    "tracking.wandb_mode=disabled",
]
FULL_SIZE = 60_000


def contender(case: str, kind: str) -> Measured:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [*TRAINING, f"runs_dir={folder}", f"checkpoint.interval_minutes={EVERY_MINUTES[case]}"]
        run_ranks(["-m", "benchmarks.checkpoint", kind, str(folder / "stalls.json"), "lm", *words], num_ranks=2)
        seconds = json.loads(next(folder.glob("*/summary.json")).read_text())["seconds"]["lm"]
        stalls = json.loads((folder / "stalls.json").read_text())
    if not stalls:
        return Measured(seconds)
    middle, longest = statistics.median(stalls) * 1000, max(stalls) * 1000
    return Measured(seconds, {"saves": len(stalls), "stall ms": middle, "longest ms": longest})


def rank(saves: bool, notes: Path, words: list[str]) -> int:
    """A command of ours that notes its stalls, or saves nothing."""
    finish = CheckpointCallback.finish

    def finish_and_note(callback: CheckpointCallback) -> None:
        if saves:
            finish(callback)
        if callback.runtime.is_main:
            notes.write_text(json.dumps(callback.stalls))

    setattr(CheckpointCallback, "finish", finish_and_note)  # noqa: B010
    if not saves:
        for event in ("before_train", "after_train", "before_validate", "after_batch", "after_epoch", "save"):
            setattr(CheckpointCallback, event, lambda callback: None)
    return command(words)


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
        f"AWD-LSTM of {FULL_SIZE:,} words, {size:,.0f} MiB a checkpoint: stall {statistics.median(stalls):.2f} s, "
        f"then {statistics.median(writes):.1f} s behind the training (medians of five)"
    )


BENCHMARK = Benchmark(
    title="the quick start's language model on 1,100 articles, two ranks of one thread, checkpoints with and without",
    unit="seconds of training",
    contenders={
        "without": lambda case: contender(case, "without"),
        "with": lambda case: contender(case, "with"),
    },
    cases=list(EVERY_MINUTES),
    baseline="without",
    higher_is_better=False,
)

if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(rank(sys.argv[1] == "with", Path(sys.argv[2]), sys.argv[3:]))
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        print(full_size(Path(temporary) / "full"))
