"""Recipes of a language model at equal CPU time: its perplexity, and the accuracy of a classifier with 500 labels on it.

    python -m benchmarks.lm_recipes IMDB_FOLDER WORK_FOLDER [--minutes 10] [--cases CASE ...]

IMDB_FOLDER contains `train.parquet` and `unsupervised.parquet` with `text` and `label` (0, 1). No test review is read: 500
of 20,000 training reviews keep their labels, and the other 5,000 measure the classifiers. Each case trains on one thread for
about the same CPU time: the time of its first steps determines how many reviews its epochs read. Perplexities of different
vocabularies cannot be compared; accuracies can. The same command resumes: a finished case is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from fastai.optimizer import OptimWrapper

from benchmarks.machine import machine
from benchmarks.semi_supervised import CpuSeconds
from ulmfit_dist import lm_learner, load_config
from ulmfit_dist.config.schema import Config
from ulmfit_dist.training.schedule import run_phases

NUM_LABELS, NUM_MEASURED = 500, 5000
SEEDS = (1, 2)
TIMED_STEPS = 20
"""Steps whose median CPU time gives the reviews of a case."""
BASE = (
    "data={source: parquet, path: texts, splits: {train: train, unlabelled: unlabelled, test: test}, valid_pct: 0.2}",
    "data.on_duplicates=drop",
    "data.num_proc=1",
    "tokenizer.max_vocab=8000",
    "model={emb_sz: 200, n_hid: 400, n_layers: 2}",
    "lm={global_batch_size: 32, drop_mult: 0.1, valid_pct: 0.02, phases: [{epochs: 1, lr: 1e-2}]}",
    "classifier={global_batch_size: 8, drop_mult: 0.5, grad_clip: 0.1, max_len: 432, baseline: false}",
    "classifier.phases=[{epochs: 2, lr: 1e-2, freeze_to: -1}, {epochs: 6, lr: [1.5e-3, 1e-2]}]",
    "runtime.precision=fp32",
    "tracking.trackers=[]",
)


@dataclass(frozen=True)
class Case:
    """Changes of a recipe.

    Attributes:
        overrides: of the config `BASE`.
        optimizer: torch's optimizer in place of AdamW, at `lr`.
        lr: its maximum learning rate.
    """

    overrides: tuple[str, ...] = ()
    optimizer: Callable[..., torch.optim.Optimizer] | None = None
    lr: float = 1e-2


def _phase(**settings: float) -> str:
    return "lm.phases=[{" + ", ".join(f"{key}: {value}" for key, value in settings.items()) + "}]"


CASES = {
    "base": Case(),
    "size 100/200/1": Case(("model={emb_sz: 100, n_hid: 200, n_layers: 1}",)),
    "size 200/600/2": Case(("model={emb_sz: 200, n_hid: 600, n_layers: 2}",)),
    "size 300/600/2": Case(("model={emb_sz: 300, n_hid: 600, n_layers: 2}",)),
    "2 epochs": Case((_phase(epochs=2, lr=1e-2),)),
    "4 epochs": Case((_phase(epochs=4, lr=1e-2),)),
    "batch 16": Case(("lm.global_batch_size=16",)),
    "batch 64": Case(("lm.global_batch_size=64",)),
    "rate 5e-3": Case((_phase(epochs=1, lr=5e-3),)),
    "rate 2e-2": Case((_phase(epochs=1, lr=2e-2),)),
    "cosine with warm-up": Case((_phase(epochs=1, lr=1e-2, pct_start=0.05), "lm.moms=[0.9, 0.9, 0.9]")),
    "no dropout": Case(("lm.drop_mult=0.0",)),
    "4,000 words": Case(("tokenizer.max_vocab=4000",)),
    "15,000 words": Case(("tokenizer.max_vocab=15000",)),
    "15,000 pieces": Case(("tokenizer.type=sentencepiece", "tokenizer.sp_vocab_size=15000", "tokenizer.max_vocab=15008")),
    "4,000 pieces": Case(("tokenizer.type=sentencepiece", "tokenizer.sp_vocab_size=4000", "tokenizer.max_vocab=4008")),
    "QRNN": Case(("model.arch=qrnn",)),
    "fused SGD": Case(optimizer=partial(torch.optim.SGD, fused=True, momentum=0.9), lr=3.0),
    "fused Adagrad": Case(optimizer=partial(torch.optim.Adagrad, fused=True), lr=2e-2),
}


def write_texts(source: Path, folder: Path) -> None:
    """Write the three splits as Parquet."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    train = pd.read_parquet(source / "train.parquet")
    train = train.iloc[generator.permutation(len(train))].reset_index(drop=True)
    train["label"] = [("negative", "positive")[label] for label in train.label]
    train[-NUM_MEASURED:].to_parquet(folder / "test.parquet")
    train = train[:-NUM_MEASURED]
    train.loc[NUM_LABELS:, "label"] = None
    train.to_parquet(folder / "train.parquet")
    unlabelled = pd.read_parquet(source / "unsupervised.parquet")[["text"]]
    unlabelled.assign(label=pd.Series(dtype=str)).to_parquet(folder / "unlabelled.parquet")


def measure(name: str, minutes: float) -> None:
    """Train a case in the current folder, and write its figures to `<case>.json`."""
    case, run = CASES[name], _name(name)
    config = load_config(None, [*BASE, *case.overrides, f"name={run}"])
    config = _in_time(config, 60 * minutes)
    learn = lm_learner(config)
    if case.optimizer is not None:
        learn.opt_func = partial(OptimWrapper, opt=case.optimizer)
        config.lm.phases[0].lr = case.lr
    started = time.process_time()
    run_phases(learn, config.lm.phases)
    seconds = time.process_time() - started
    learn.export()
    figures = {
        "documents": len(learn.dls.train.documents),
        "minutes": seconds / 60,
        "perplexity": learn.valid_metrics["perplexity"],
    }
    accuracies = [_accuracy(run, case, seed) for seed in SEEDS]
    Path(f"{run}.json").write_text(json.dumps({**figures, "accuracies": accuracies}))


def _in_time(config: Config, seconds: float) -> Config:
    """Return the config limited to the documents that its epochs can read in the given CPU seconds."""
    learn, steps = lm_learner(config), CpuSeconds(TIMED_STEPS)
    learn.fit(1, 1e-3, cbs=steps)
    epochs = sum(phase.epochs for phase in config.lm.phases)
    whole = statistics.median(steps.seconds) * len(learn.dls.train) * epochs
    everything = len(learn.dls.train.documents)
    documents = min(everything, int(everything * seconds / whole))
    per_split = documents // 2 if documents < 40_000 else documents - 20_000  # of train and unlabelled
    return replace(config, data=replace(config.data, max_documents=per_split))


def _accuracy(run: str, case: Case, seed: int) -> float:
    """Return the accuracy of a classifier on the language model of a case, with 500 labels."""
    name = f"{run}-{seed}"
    overrides = [*BASE, *case.overrides, f"name={name}", f"seed={seed}", f"classifier.encoder=runs/{run}/lm"]
    Path("recipe.yaml").write_text("name: recipe\n")  # the command line needs a file
    subprocess.run([sys.executable, "-m", "ulmfit_dist", "run", "recipe.yaml", *overrides], check=True)
    return float(json.loads(Path(f"runs/{name}/summary.json").read_text())["classifier"]["test"]["accuracy"])


def _name(case: str) -> str:
    return "".join(character if character.isalnum() else "-" for character in case)


def table(folder: Path, minutes: float) -> str:
    """Return a line per measured case."""
    head = f"{'recipe':<22}{'reviews':>9}{'minutes':>9}{'perplexity':>12}{'accuracy':>10}  of each seed"
    lines = [machine(), f"one thread, {minutes:g} minutes per language model; {NUM_LABELS} labels", head]
    for name in CASES:
        if (path := folder / f"{_name(name)}.json").exists():
            figures = json.loads(path.read_text())
            accuracies = figures["accuracies"]
            cells = f"{figures['documents']:>9,}{figures['minutes']:>9.1f}{figures['perplexity']:>12.1f}"
            each = " ".join(f"{accuracy:.4f}" for accuracy in accuracies)
            lines.append(f"{name:<22}{cells}{statistics.fmean(accuracies):>10.4f}  {each}")
    return "\n".join(lines)


def main() -> None:
    """Measure the cases that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IMDB_FOLDER", type=Path)
    parser.add_argument("folder", metavar="WORK_FOLDER", type=Path)
    parser.add_argument("--minutes", type=float, default=10, help="CPU minutes per language model (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", default=list(CASES))
    parser.add_argument("--measure", choices=CASES, metavar="CASE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.minutes)
        return
    args.folder.mkdir(exist_ok=True)
    if not (args.folder / "texts").is_dir():
        write_texts(args.source, args.folder / "texts")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    given = [str(args.source), ".", "--minutes", str(args.minutes)]
    for name in args.cases:
        if not (args.folder / f"{_name(name)}.json").exists():
            command = [sys.executable, "-m", "benchmarks.lm_recipes", *given, "--measure", name]
            subprocess.run(command, cwd=args.folder, env=environment, check=True)
    print(table(args.folder, args.minutes))


if __name__ == "__main__":
    main()
