"""Kill all ranks again and again, go on each time, and compare the end with that of a run left alone.

    python tests/kill_and_resume.py [key=value ...] [--kills 20] [--ranks 2 [N ...]] [--seed 0]

The ranks are those of the first life, the second, and so on, around again. Every other kill is aimed at a save: it comes a
few milliseconds after the folder of a checkpoint has appeared; the rest come at random. Every life gets a share of the
training that is left, so the kills are spread over both stages. The test suite holds a short form.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from conftest import TINY, make_folder
from killing import STAGES, finish, kill_all, metrics, rows_read, start, wait_for_training, weights

RECIPE = (
    *TINY,
    "model={emb_sz: 24, n_hid: 32, n_layers: 3}",
    "lm.phases=[{epochs: 2, lr: 1e-2, freeze_to: -1}, {epochs: 6, lr: 5e-3}]",
    "classifier.phases=[{epochs: 6, lr: 2e-2, freeze_to: -1}, {epochs: 6, lr: [2.188e-4, 1e-2], freeze_to: -2},"
    " {epochs: 8, lr: [1.094e-4, 5e-3], freeze_to: 0}]",
    "lm.grad_clip=0.3",
    "classifier.grad_clip=0.1",
    "checkpoint.interval_steps=7",
    "tracking.log_interval=5",
    "tracking.wandb_mode=disabled",
)


def wait_for_moment(process: subprocess.Popen[str], run: Path, in_a_save: bool, rng: random.Random, seconds: float) -> bool:
    """Until a random moment of the training, or until a checkpoint is being written after it. False if the run has ended."""
    deadline = time.monotonic() + rng.uniform(0, seconds)
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    while in_a_save and process.poll() is None and not list(run.glob("checkpoints/*/.step-*.tmp")):
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.01))
    return process.poll() is None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        compare(Path(temporary), args.kills, args.ranks, args.seed, args.overrides)


def compare(folder: Path, kills: int, ranks: Sequence[int], seed: int, overrides: Sequence[str]) -> None:
    """A run left alone, a run killed, and what is equal; printed."""
    make_folder(folder / "texts", per_class=70)
    (folder / "empty.yaml").write_text("{}\n")
    words = ["run", folder / "empty.yaml", *RECIPE, f"data.path={folder}/texts", f"data.cache_dir={folder}/cache"]
    words += [f"runs_dir={folder}", *overrides]
    process = start([*words, "name=alone"], ranks[0], folder / "alone-notes")
    seconds = -wait_for_training(process, folder / "alone-notes")
    finish(process)
    seconds += time.monotonic()
    print(f"left alone, {ranks[0]} rank(s): {seconds:.0f} s of training", flush=True)

    rng, run, notes = random.Random(seed), folder / "killed", folder / "killed-notes"
    rows = len(dict(rows_read(folder / "alone-notes")))
    lives = itertools.cycle(ranks)
    for number in range(kills):
        processes = next(lives)
        process = start([*words, "name=killed"], processes, notes)
        wait_for_training(process, notes)
        left = seconds * (1 - len(dict(rows_read(notes))) / rows)
        alive = wait_for_moment(process, run, number % 2 == 0, rng, 2 * left / (kills - number + 1))
        kill_all(process)
        if not alive:
            print(f"the run has ended before kill {number + 1}")
            break
        stage, step, _ = max((key for key, _ in rows_read(notes)), key=lambda key: (STAGES.index(key[0]), key[1]))
        half_done = [str(path.relative_to(run / "checkpoints")) for path in run.glob("checkpoints/*/.step-*")]
        print(f"kill {number + 1:2}, {processes} rank(s), {stage} step {step}", *half_done, flush=True)
    output = finish(start([*words, "name=killed"], next(lives), notes))
    print(*[line for line in output.splitlines() if "resumes from" in line or "damaged" in line], sep="\n")
    report(folder)


def report(folder: Path) -> None:
    """Compare what the two runs have read, trained and logged."""
    expected, actual = dict(rows_read(folder / "alone-notes")), list(rows_read(folder / "killed-notes"))
    keys = {key for key, _ in actual}
    print(f"rows of training steps: {len(expected)} read alone, {len(keys)} by the other, {len(actual) - len(keys)} twice")
    others = sum(expected.get(key) != ids for key, ids in actual)
    print(f"  with other token ids: {others}; never read: {len(expected.keys() - keys)}")
    for stage in STAGES:
        ours, reference = weights(folder / "killed", stage), weights(folder / "alone", stage)
        bits = all(torch.equal(ours[name], reference[name]) for name in reference)
        largest = max((ours[name] - reference[name]).abs().max().item() for name in reference)
        print(f"{stage}: final weights {'equal bit by bit' if bits else f'differ by {largest:.1e} at most'}")
    ours, reference = metrics(folder / "killed"), metrics(folder / "alone")
    assert [list(line) for line in ours] == [list(line) for line in reference]
    pairs = [(a[key], b[key]) for a, b in zip(ours, reference, strict=True) for key in b if isinstance(b[key], float)]
    largest = max(abs(a - b) / max(abs(b), 1e-30) for a, b in pairs)
    print(f"metrics.jsonl: {len(ours)} lines in both, figures differ by {largest:.1e} at most, relatively")


if __name__ == "__main__":
    main()
