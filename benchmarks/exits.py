"""Stress test of exit codes: many runs of two ranks under load, with the exit code of each rank.

    python -m benchmarks.exits [--count 500] [--at-once 3] [--scenarios NAME ...] [--seed 0] [--output FILE]

A run trains a small language model on two ranks with a gloo process group, saves checkpoints, and ends in one of five ways:
by success, by SIGINT or SIGTERM to both ranks, by a `UserError` of both, or by an exception on one. One run in three writes
W&B's files offline. Ranks are forked from a process that has imported everything and has started no threads; they then run
`python -m ulmfit_dist`, with the interpreter's own exit. So a run takes about a second instead of ten, most of it its exit.

The report lists, per scenario, the runs, the runs whose exit codes differ from the expected ones, and the ranks killed by
SIGABRT. Exit code: 1 if exit codes of a run differ, else 0.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

NUM_RANKS = 2
TIMEOUT = 300
"""Time limit of a run, in seconds, after which its ranks are killed, and the run counts as unexpected."""
IMPORTS = (
    "accelerate", "fastai.text.all", "matplotlib.pyplot", "pyarrow.parquet", "rich.live", "safetensors.torch", "spacy",
    "torch._dynamo", "torch.distributed.nn.functional", "torch.nn.parallel", "wandb", "ulmfit_dist.cli.main",
    "ulmfit_dist.report.page", "ulmfit_dist.stages.run", "ulmfit_dist.training.train_steps",
)  # fmt: skip
CONFIG = (
    "lm", "{folder}/empty.yaml", "data.path={folder}/texts", "data.cache_dir={folder}/cache", "data.documents_per_shard=48",
    "data.valid_pct=0.25", "tokenizer.min_freq=1", "model={{emb_sz: 16, n_hid: 20, n_layers: 2}}", "lm.seq_len=10",
    "lm.global_batch_size=8", "lm.phases=[{{epochs: 1, lr: 1e-2}}]", "checkpoint.interval_steps=2",
    "tracking.log_interval=5", "runtime.precision=fp32", "runs_dir={folder}/runs",
)  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """End of a run.

    Attributes:
        codes: expected exit codes, by rank.
        signal: signal to both ranks during training.
        failing_rank: rank that raises an exception during training.
        overrides: config overrides.
    """

    codes: tuple[int, ...]
    signal: signal.Signals | None = None
    failing_rank: int | None = None
    overrides: tuple[str, ...] = ()


SCENARIOS = {
    "success": Scenario((0, 0)),
    "keyboard": Scenario((85, 85), signal=signal.SIGINT),
    "sigterm": Scenario((85, 85), signal=signal.SIGTERM),
    "user_error": Scenario((2, 2), overrides=("lm.phases=[{epochs: 1, lr: 1e30}]",)),
    "crash": Scenario((1, 1), failing_rank=1),
}


@dataclass
class Run:
    """Run and the exit codes of its ranks, negative for signals."""

    number: int
    scenario: str
    wandb: str
    step: int
    began: float
    processes: dict[int, int] = field(default_factory=dict)
    codes: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    is_signalled: bool = False
    was_killed: bool = False

    @property
    def is_as_expected(self) -> bool:
        return tuple(self.codes[rank] for rank in range(NUM_RANKS)) == SCENARIOS[self.scenario].codes and not self.was_killed


def main() -> int:
    """Run the benchmark, or `ulmfit_dist` in a forked rank, which must have nothing to clean up after it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="runs to exit (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=3, help="runs at the same time (default: %(default)s)")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file for the results, one line of JSON per run")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ulmfit-dist-exits-"))
    prepare(folder)
    import_everything()
    runs = []
    for run in run_all(folder, args.count, args.at_once, args.scenarios, args.seed):
        runs.append(run)
        if args.output:
            with args.output.open("a") as file:
                file.write(json.dumps(asdict(run)) + "\n")
        if not run.is_as_expected:
            print(f"run {run.number} ({run.scenario}, W&B {run.wandb}) ended with {run.codes}:", file=sys.stderr)
            for rank in range(NUM_RANKS):
                print(output(folder, run, rank).read_text(), file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    print(*table(runs), sep="\n")
    return 0 if all(run.is_as_expected for run in runs) else 1


def prepare(folder: Path) -> None:
    """Write texts, and build their token store in another process."""
    vocab = "the of and in match goal team bread soup oven code data user".split()
    rng = random.Random(0)
    for name in ("sport", "food"):
        (folder / "texts" / name).mkdir(parents=True)
        for i in range(40):
            (folder / "texts" / name / f"{i}.txt").write_text(" ".join(rng.choices(vocab, k=rng.randint(10, 40))))
    (folder / "empty.yaml").write_text("{}\n")
    command = [argument.format(folder=folder) for argument in ("prepare", *CONFIG[1:])]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    subprocess.run([sys.executable, "-m", "ulmfit_dist", *command], check=True, env=environment, stdout=subprocess.DEVNULL)


def import_everything() -> None:
    """Import the modules of a rank before it is forked. Raises SystemExit if there are threads, which a fork would lose."""
    for name in IMPORTS:
        __import__(name)
    names = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
    others = [name for name in names[1:] if not name.startswith("jemalloc")]  # pyarrow's allocator starts it again itself
    if others:
        raise SystemExit(f"threads after the imports: {', '.join(others)}; expected none: set OMP_NUM_THREADS=1")
    gc.freeze()  # else garbage collection in each rank would copy the memory of all imported modules


def run_all(folder: Path, count: int, at_once: int, scenarios: Sequence[str], seed: int) -> Iterator[Run]:
    """Start runs, send their signals, and yield each run after both ranks have exited."""
    rng = random.Random(seed)
    running: list[Run] = []
    number = 0
    while number < count or running:
        while number < count and len(running) < at_once:
            wandb = "offline" if number % 3 == 0 else "disabled"
            run = Run(number, scenarios[number % len(scenarios)], wandb, rng.randint(3, 14), time.monotonic())
            start(folder, run)
            running.append(run)
            number += 1
        time.sleep(0.01)
        for run in list(running):
            watch(folder, run)
            if len(run.codes) == NUM_RANKS:
                running.remove(run)
                run.seconds = time.monotonic() - run.began
                yield run


def start(folder: Path, run: Run) -> None:
    """Fork the ranks of a run. The function does not return in a rank."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    sys.stdout.flush()
    for rank in range(NUM_RANKS):
        process = os.fork()
        if process == 0:
            become_rank(folder, run, rank, port)
        run.processes[rank] = process


def become_rank(folder: Path, run: Run, rank: int, port: int) -> None:
    """Run `python -m ulmfit_dist` as rank `rank` in this process, from its environment to the interpreter's exit."""
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), f"{rank}")
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), f"{NUM_RANKS}")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "ACCELERATE_USE_CPU": "true"}
    file = os.open(output(folder, run, rank), os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    scenario = SCENARIOS[run.scenario]
    overrides = [f"name=run{run.number}", f"tracking.wandb_mode={run.wandb}", *scenario.overrides]
    sys.argv = ["ulmfit-dist", *(argument.format(folder=folder) for argument in CONFIG), *overrides]
    observe_steps(started(folder, run, rank), run.step, fails=scenario.failing_rank == rank)
    runpy.run_module("ulmfit_dist", run_name="__main__", alter_sys=True)


def observe_steps(marker: Path, step: int, fails: bool) -> None:
    """Patch training to touch a file at a step, and optionally raise an exception there."""
    from ulmfit_dist.training.train_steps import LMLearner

    train_step = LMLearner._train_step

    def observed(learner: LMLearner) -> None:
        if learner.stage_step == step:
            marker.touch()
            if fails:
                raise RuntimeError("a rank that fails")
        train_step(learner)

    setattr(LMLearner, "_train_step", observed)  # noqa: B010


def watch(folder: Path, run: Run) -> None:
    """Send a run its signal after both ranks have started to train, and record the ranks that have exited."""
    number = SCENARIOS[run.scenario].signal
    if number and not run.is_signalled and all(started(folder, run, rank).exists() for rank in range(NUM_RANKS)):
        run.is_signalled = True
        send(run, number)
    if not run.was_killed and time.monotonic() - run.began > TIMEOUT:
        run.was_killed = True
        send(run, signal.SIGKILL)
    for rank, process in run.processes.items():
        if rank not in run.codes:
            exited, status = os.waitpid(process, os.WNOHANG)
            if exited:
                run.codes[rank] = os.waitstatus_to_exitcode(status)


def send(run: Run, number: signal.Signals) -> None:
    for rank, process in run.processes.items():
        if rank not in run.codes:
            os.kill(process, number)


def output(folder: Path, run: Run, rank: int) -> Path:
    return folder / f"{run.number}.{rank}.txt"


def started(folder: Path, run: Run, rank: int) -> Path:
    return folder / f"{run.number}.{rank}.training"


def table(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the report, one line per scenario."""
    yield f"{'scenario':<12}{'runs':>6}{'unexpected':>13}{'SIGABRT':>9}  exit codes of the ranks"
    for name in SCENARIOS:
        selected = [run for run in runs if run.scenario == name]
        unexpected = sum(not run.is_as_expected for run in selected)
        codes = Counter(code for run in selected for code in run.codes.values())
        counts = ", ".join(f"{count} x {code}" for code, count in sorted(codes.items()))
        yield f"{name:<12}{len(selected):>6}{unexpected:>13}{codes[-signal.SIGABRT]:>9}  {counts}"


if __name__ == "__main__":
    sys.exit(main())
