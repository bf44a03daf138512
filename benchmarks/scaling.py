"""Overhead of ranks: two processes of one thread against one process of two threads, on the same two cores.

Ranks add no cores on one machine, so the difference is their overhead: DDP's gradient exchange over gloo, and the time that
ranks wait for each other. Both train the quick start's language model at a global batch of 64 rows, 32 per rank. A measuring
process that does nothing else starts each side again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness import Benchmark, Measured
from benchmarks.workloads import configured, seconds_per_step
from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.stages.prepare import prepare

ROOT = Path(__file__).parent.parent
STEP = "seconds per step: "
"""Prefix of the line that rank 0 prints."""


def contender(num_ranks: int, num_threads: int) -> Measured:
    config = configured("lm.global_batch_size=64")
    printed = run_ranks(["-m", "benchmarks.scaling"], num_ranks, num_threads)
    seconds = float(next(line for line in printed.splitlines() if line.startswith(STEP)).removeprefix(STEP))
    return Measured(config.lm.global_batch_size * config.lm.seq_len / seconds, {"ms": seconds * 1000})


def run_ranks(argv: Sequence[str], num_ranks: int, num_threads: int = 1) -> str:
    """Run `python ARGV` as CPU ranks, and return their output."""
    launcher = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/multi_gpu.yaml"]
    launcher = [*launcher, "--num_processes", str(num_ranks)] if num_ranks > 1 else []
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(num_threads)}
    command = [sys.executable, *launcher, *argv]
    process = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return process.stdout


def rank(warm_up: int = 5, steps: int = 30) -> None:
    """Train as one of the ranks, and print the seconds per step on rank 0."""
    config = configured("lm.global_batch_size=64")
    with Runtime(RuntimeConfig(precision="fp32")) as runtime:
        learner = lm_learner(config, runtime, prepare(config, runtime))
        runtime.print(f"{STEP}{seconds_per_step(learner, 1e-2, warm_up, steps)}")


BENCHMARK = Benchmark(
    title="language model training, two cores, 64 x 72 tokens per step, AWD-LSTM 200/400/2, vocabulary of 8,000, fp32",
    unit="tokens/s",
    contenders={
        "1 rank x 2 threads": lambda case: contender(1, 2),
        "2 ranks x 1 thread": lambda case: contender(2, 1),
    },
    baseline="1 rank x 2 threads",
)

if __name__ == "__main__":
    rank()
