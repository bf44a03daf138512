"""Accuracy by number of labels on IMDb: linear model, plain fastai, and each part of this package for few labels.

    python -m benchmarks.few_labels IMDB_FOLDER WORK_FOLDER [--labels 100 500] [--seeds 1 2 3] [--methods METHOD ...]

IMDB_FOLDER contains `train.parquet`, `unsupervised.parquet` and `test.parquet` with `text` and `label` (0, 1). A seed draws
the reviews that keep their labels, a fifth of which is the valid split; all selection happens there. Two language models,
forward and backward, are trained from scratch on the 75,000 reviews that are not test. The test reviews are scored, and
nothing else reads them. The same command resumes: finished runs are not trained again.

Methods: `linear`, TF-IDF with logistic regression; `lsa`, the same with latent semantic analysis of all training texts
(`classifier.baseline_features: lsa`); `fastai`, its classifier with the same encoder, phases and dropout; `supervised`;
`semi-supervised` (`classifier.unlabelled`); `self-training` with the model of `lsa` as the teacher; `both`, the mean of
forward and backward self-training; `voters`, the same with the model of `lsa`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

from benchmarks.machine import machine

METHODS = ("linear", "lsa", "fastai", "supervised", "semi-supervised", "self-training", "both", "voters")
DIRECTIONS = ("forward", "backward")
BASE = (
    "data.source=parquet",
    "data.splits={train: train, unlabelled: unlabelled, test: test}",
    "data.valid_pct=0.2",
    "data.on_duplicates=drop",
    "tokenizer.max_vocab=8000",
    "model={emb_sz: 200, n_hid: 400, n_layers: 2}",
    "lm={global_batch_size: 32, drop_mult: 0.1, valid_pct: 0.01, phases: [{epochs: 1, lr: 1e-2}]}",
    "classifier.grad_clip=0.1",
    "classifier.max_len=432",
    "classifier.temperature_scaling=true",
    "tracking.trackers=[]",
)
FEW = (
    "classifier.global_batch_size=8",
    "classifier.phases=[{epochs: 2, lr: 1e-2, freeze_to: -1}, {epochs: 6, lr: [1.5e-3, 1e-2]}]",
)
MANY = (
    "classifier.global_batch_size=32",
    "classifier.phases=[{epochs: 3, lr: [1.5e-3, 1e-2]}]",
)
UNLABELLED = (
    "classifier.unlabelled.batch_size=8",
    "classifier.unlabelled.entropy_weight=1.0",
    "classifier.unlabelled.adversarial_weight=1.0",
    "classifier.unlabelled.virtual_adversarial_weight=1.0",
)
SELF_TRAINING = (
    "classifier.baseline_features=lsa",
    "classifier.global_batch_size=32",
    "classifier.drop_mult=0.3",
    "self_training.teacher=baseline",
    "self_training.rounds=1",
    "self_training.shares=[0.1, 0.25, 0.5]",
    "self_training.max_documents=24000",
    "self_training.phases=[{epochs: 1, lr: [1.5e-3, 1e-2]}]",
)
COMMAND = [sys.executable, "-m", "ulmfit_dist"]


def write_texts(source: Path, folder: Path, num_labels: int, seed: int) -> None:
    """Write train, unlabelled and test; as many reviews of each class keep their label."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    train, test = (pd.read_parquet(source / f"{split}.parquet") for split in ("train", "test"))
    for frame in (train, test):
        frame["label"] = [("negative", "positive")[label] for label in frame.label]
    order = generator.permutation(len(train))
    kept = [order[(train.label.to_numpy() == name)[order]][: num_labels // 2] for name in ("negative", "positive")]
    train.loc[np.setdiff1d(np.arange(len(train)), np.concatenate(kept)), "label"] = None
    unlabelled = pd.read_parquet(source / "unsupervised.parquet")[["text"]].assign(label=pd.Series(dtype=str))
    for name, frame in {"train": train, "unlabelled": unlabelled, "test": test}.items():
        frame.to_parquet(folder / f"{name}.parquet")


class Runs:
    """Runs of one draw of labels, each trained when its figures are asked for.

    Args:
        folder: folder of all runs.
        source: folder of IMDb.
        num_labels, seed: the draw.
    """

    def __init__(self, folder: Path, source: Path, num_labels: int, seed: int):
        self.folder, self.num_labels, self.seed = folder, num_labels, seed
        self.draw = f"{num_labels}-{seed}"
        self.texts = folder / f"texts-{self.draw}"
        if not (self.texts / "test.parquet").exists():
            write_texts(source, self.texts, num_labels, seed)

    def accuracy(self, method: str) -> float:
        """Return the accuracy on the test reviews."""
        if method in ("linear", "lsa"):
            return self._of_linear(method)
        if method in ("both", "voters"):
            return self._of_ensemble(method)
        if method == "fastai":
            return self._of_fastai()
        return float(_summary(self._run(method))["classifier"]["test"]["accuracy"])

    def train_language_model(self, direction: str) -> None:
        """Train the language model of all draws, which reads no label."""
        overrides = [*self._texts(), *BASE, f"name=lm-{direction}", f"model.backwards={direction == 'backward'}"]
        if not (self.folder / f"runs/lm-{direction}/lm/model.safetensors").exists():
            self._call("lm", *overrides)

    def _texts(self) -> list[str]:
        return [f"data.path={self.texts}", "seed=1"]

    def _overrides(self, method: str, direction: str = "forward") -> list[str]:
        self.train_language_model(direction)
        extra = {"semi-supervised": UNLABELLED, "self-training": SELF_TRAINING}.get(method, ())
        size = FEW if self.num_labels < 10_000 else MANY
        encoder = f"classifier.encoder=runs/lm-{direction}/lm"
        backwards = f"model.backwards={direction == 'backward'}"
        return [*self._texts(), *BASE, *size, *extra, encoder, backwards, f"name={self._name(method, direction)}"]

    def _name(self, method: str, direction: str) -> str:
        return f"{method}-{direction}-{self.draw}"

    def _run(self, method: str, direction: str = "forward") -> Path:
        command = "self-train" if method == "self-training" else "run"
        run = self.folder / "runs" / self._name(method, direction)
        if "test" not in _summary(run).get("classifier", {}):
            self._call(command, *self._overrides(method, direction))
        return run

    def _of_linear(self, method: str) -> float:
        features = f"classifier.baseline_features={'tfidf' if method == 'linear' else 'lsa'}"
        figures = self._json(method, "baseline", "recipe.yaml", *self._texts(), *BASE, f"name={method}", features)
        return float(figures["test"]["accuracy"])

    def _of_ensemble(self, method: str) -> float:
        runs = [str(self._run("self-training", direction)) for direction in DIRECTIONS]
        figures = self._json(method, "ensemble", *runs, *(["--with-baseline"] if method == "voters" else []))
        return float(figures["ensemble"]["test"]["accuracy"])

    def _of_fastai(self) -> float:
        path = self.folder / f"fastai-{self.draw}.json"
        if not path.exists():
            command = [sys.executable, "-m", "benchmarks.few_labels_fastai", path.name, *self._overrides("fastai")]
            subprocess.run(command, cwd=self.folder, env=_environment(), check=True)
        return float(json.loads(path.read_text())["accuracy"])

    def _json(self, method: str, *command: str) -> dict[str, Any]:
        """Return the JSON object that a command prints, which is written to a file, unless it is there."""
        path = self.folder / f"{method}-{self.draw}.json"
        if not path.exists():
            self._write_recipe()
            done = subprocess.run(
                [*COMMAND, *command, "--json"],
                cwd=self.folder,
                env=_environment(),
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            path.write_text(done.stdout[done.stdout.index("{") :])
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def _call(self, command: str, *overrides: str) -> None:
        self._write_recipe()
        subprocess.run([*COMMAND, command, "recipe.yaml", *overrides], cwd=self.folder, env=_environment(), check=True)

    def _write_recipe(self) -> None:
        (self.folder / "recipe.yaml").write_text("name: recipe\n")  # the command line needs a file


def table(accuracies: Mapping[tuple[int, str], Sequence[float]]) -> str:
    """Return a line per number of labels and method: mean and standard deviation over the seeds."""
    lines = [machine(), f"{'labels':>8}  {'method':<16}{'accuracy':>9}{'sd':>8}  of each seed"]
    for (number, method), values in accuracies.items():
        spread = f"{statistics.stdev(values):>8.4f}" if len(values) > 1 else f"{'':>8}"
        each = " ".join(f"{value:.4f}" for value in values)
        lines.append(f"{number:>8}  {method:<16}{statistics.fmean(values):>9.4f}{spread}  {each}")
    return "\n".join(lines)


def measure(
    folder: Path, source: Path, labels: Iterable[int], seeds: Sequence[int], methods: Iterable[str]
) -> dict[tuple[int, str], list[float]]:
    """Train what is missing; return the accuracies of all seeds by number of labels and method."""
    accuracies: dict[tuple[int, str], list[float]] = {}
    for number in labels:
        for method in methods:
            accuracies[number, method] = [Runs(folder, source, number, seed).accuracy(method) for seed in seeds]
            print(f"{number} labels, {method}: {accuracies[number, method]}", flush=True)
    return accuracies


def _summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    summary: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return summary


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IMDB_FOLDER", type=Path)
    parser.add_argument("folder", metavar="WORK_FOLDER", type=Path)
    parser.add_argument("--labels", nargs="+", type=int, default=[100, 500, 2500, 25_000], metavar="NUMBER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    folder, source = args.folder.absolute(), args.source.absolute()
    print(table(measure(folder, source, args.labels, args.seeds, args.methods)))


if __name__ == "__main__":
    main()
