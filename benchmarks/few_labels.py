"""Accuracy by number of labels: linear model, plain fastai, and each part of this package for few labels.

    python -m benchmarks.few_labels FOLDER WORK_FOLDER [--labels 100 500] [--seeds 1 2 3] [--methods METHOD ...]

FOLDER contains `train.parquet`, `test.parquet` and, if there are such texts, `unsupervised.parquet`, with columns `text` and
`label`: IMDb, or what `benchmarks.newsgroups` writes. A seed draws the documents that keep their labels, a fifth of which is
the valid split; all selection happens there. Two language models, forward and backward, are trained from scratch on all
documents that are not test. The test documents are scored, and nothing else reads them. The same command resumes: finished
runs are not trained again.

Methods: `linear`, TF-IDF with logistic regression; `naive-bayes` and `lsa`, the same with these
`classifier.baseline_features`; `fastai`, its classifier with the same encoder, phases and dropout; `supervised`, a
classifier on the forward language model; `folds`, the mean of five classifiers and linear models that `cross-validate
--ensemble` makes of all labels; `with-linear`, the mean of `supervised` and the linear model (`lsa`; from 10,000 labels on,
`naive-bayes`); `both`, the mean of the forward and the backward `supervised`; `both-with-linear`, the same with the linear
model; `adversarial`, adversarial training on the labelled documents; `semi-supervised`, all losses of
`classifier.unlabelled`; `self-training`, whose teacher is `with-linear`; `self-training-with-linear`, their mean;
`rounds-with-linear`, the mean of the linear model and the classifiers of all rounds, whichever is best on valid;
`both-self-training`, the mean of a forward and a backward student whose teacher is `both-with-linear`;
`both-self-training-with-linear`. Round 0 of a self-training is a copy of the `supervised` run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

from benchmarks.few_labels_ensemble import Answers, linear_answers
from benchmarks.few_labels_ensemble import accuracy as ensemble_accuracy
from benchmarks.machine import machine

METHODS = (
    "linear",
    "naive-bayes",
    "lsa",
    "fastai",
    "supervised",
    "folds",
    "with-linear",
    "both",
    "both-with-linear",
    "adversarial",
    "semi-supervised",
    "self-training",
    "self-training-with-linear",
    "rounds-with-linear",
    "both-self-training",
    "both-self-training-with-linear",
)
DIRECTIONS = ("forward", "backward")
FEATURES = {"linear": "tfidf", "naive-bayes": "naive_bayes", "lsa": "lsa"}
"""`classifier.baseline_features` by method."""
BASE = (
    "data.source=parquet",
    "data.valid_pct=0.2",
    "data.on_duplicates=drop",
    "tokenizer.max_vocab=8000",
    "model={emb_sz: 200, n_hid: 400, n_layers: 2}",
    "lm={global_batch_size: 32, drop_mult: 0.1, valid_pct: 0.01}",
    "classifier.grad_clip=0.1",
    "classifier.max_len=432",
    "classifier.temperature_scaling=true",
    "tracking.trackers=[]",
)
FEW = (
    "classifier.baseline_features=lsa",
    "classifier.global_batch_size=8",
    "classifier.drop_mult=0.6",
    "classifier.phases=[{epochs: 2, lr: 1e-2, freeze_to: -1}, {epochs: 6, lr: [1.5e-3, 1e-2]}]",
)
MIDDLE = (
    *FEW,
    "classifier.global_batch_size=16",
    "classifier.phases=[{epochs: 1, lr: 1e-2, freeze_to: -1}, {epochs: 4, lr: [7.5e-4, 5e-3]}]",
)
MANY = (
    "classifier.baseline_features=naive_bayes",
    "data.valid_pct=0.1",
    "classifier.global_batch_size=32",
    "classifier.drop_mult=0.5",
    "classifier.export_epoch=best",
    "classifier.phases=[{epochs: 4, lr: [1.5e-3, 1e-2]}]",
)
ADVERSARIAL = ("classifier.unlabelled.adversarial_weight=1.0",)
UNLABELLED = (
    "classifier.unlabelled.batch_size=8",
    "classifier.unlabelled.entropy_weight=1.0",
    "classifier.unlabelled.adversarial_weight=1.0",
    "classifier.unlabelled.virtual_adversarial_weight=1.0",
)
SELF_TRAINING = (
    "self_training.teacher=mean",
    "self_training.rounds=1",
    "self_training.shares=[0.75]",
    "self_training.scored_documents=32000",
    "self_training.phases=[{epochs: 1, lr: [1.5e-3, 1e-2]}]",
)
FOLDS = ("data.folds=5", "--ensemble")
COMMAND = [sys.executable, "-m", "ulmfit_dist"]


def write_texts(source: Path, folder: Path, num_labels: int, seed: int) -> None:
    """Write train, test and unlabelled, if there is one; equal numbers of training documents per class keep labels."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(seed)
    train, test = (pd.read_parquet(source / f"{split}.parquet").astype({"label": str}) for split in ("train", "test"))
    classes = sorted(train.label.unique())
    order = generator.permutation(len(train))
    shuffled = train.label.to_numpy()[order]
    kept = [order[shuffled == name][: num_labels // len(classes)] for name in classes]
    train.loc[np.setdiff1d(np.arange(len(train)), np.concatenate(kept)), "label"] = None
    train.to_parquet(folder / "train.parquet")
    if (source / "unsupervised.parquet").exists():
        texts = pd.read_parquet(source / "unsupervised.parquet")[["text"]]
        texts.assign(label=pd.Series(dtype=str)).to_parquet(folder / "unlabelled.parquet")
    test.to_parquet(folder / "test.parquet")  # the last: with it the draw is complete


class Runs:
    """Runs of one draw of labels, each trained on first use.

    Args:
        folder: folder of all runs.
        source: folder of the documents.
        num_labels, seed: the draw.
        lm_epochs: epochs of the language models.
        precision: `runtime.precision`.
    """

    def __init__(self, folder: Path, source: Path, num_labels: int, seed: int, lm_epochs: int = 1, precision: str = "auto"):
        self.folder, self.num_labels, self.seed = folder, num_labels, seed
        self.training = (f"lm.phases=[{{epochs: {lm_epochs}, lr: 1e-2}}]", f"runtime.precision={precision}")
        self.draw = f"{num_labels}-{seed}"
        self.texts = folder / f"texts-{self.draw}"
        if not (self.texts / "test.parquet").exists():
            write_texts(source, self.texts, num_labels, seed)

    def accuracy(self, method: str) -> float:
        """Return the accuracy on the test documents."""
        if method in FEATURES:
            return self._of_linear(method)
        if method == "rounds-with-linear":
            return self._of_rounds(method)
        if method.startswith("both") or method.endswith("with-linear"):
            return self._of_ensemble(method)
        if method == "fastai":
            return self._of_fastai()
        return float(_summary(self._run(method))["classifier"]["test"]["accuracy"])

    def train_language_model(self, direction: str) -> None:
        """Train the language model of all draws, which reads no label."""
        overrides = [*self._texts(), f"name=lm-{direction}", f"model.backwards={direction == 'backward'}"]
        if not (self.folder / f"runs/lm-{direction}/lm/model.safetensors").exists():
            self._call("lm", *overrides)

    def _texts(self) -> list[str]:
        splits = [name for name in ("train", "unlabelled", "test") if (self.texts / f"{name}.parquet").exists()]
        return [
            f"data.path={self.texts}",
            f"data.splits={{{', '.join(f'{name}: {name}' for name in splits)}}}",
            "seed=1",
            *BASE,
            *self.training,
        ]

    def _base(self) -> list[str]:
        size = FEW if self.num_labels < 1000 else MIDDLE if self.num_labels < 10_000 else MANY
        return [*self._texts(), *size]

    def _overrides(self, method: str, direction: str = "forward") -> list[str]:
        self.train_language_model(direction)
        other = self._name("supervised", DIRECTIONS[direction == "forward"])
        extra = {
            "adversarial": ADVERSARIAL,
            "semi-supervised": UNLABELLED,
            "self-training": SELF_TRAINING,
            "both-self-training": (*SELF_TRAINING, f"self_training.voters=[runs/{other}]"),
            "folds": FOLDS,
        }.get(method, ())
        encoder = f"classifier.encoder=runs/lm-{direction}/lm"
        backwards = f"model.backwards={direction == 'backward'}"
        return [*self._base(), *extra, encoder, backwards, f"name={self._name(method, direction)}"]

    def _name(self, method: str, direction: str) -> str:
        return f"{method}-{direction}-{self.draw}"

    def _run(self, method: str, direction: str = "forward") -> Path:
        run = self.folder / "runs" / self._name(method, direction)
        if "test" in _summary(run).get("classifier", {}):
            return run
        command = {"self-training": "self-train", "both-self-training": "self-train", "folds": "cross-validate"}
        if command.get(method) == "self-train":
            self._copy_round_0(run, method, direction)
        self._call(command.get(method, "run"), *self._overrides(method, direction))
        return run

    def _copy_round_0(self, run: Path, method: str, direction: str) -> None:
        """Copy the supervised run, which is what round 0 of a self-training would train."""
        members = DIRECTIONS if method.startswith("both") else (direction,)
        supervised = {member: self._run("supervised", member) for member in members}
        first = run.with_name(f"{run.name}-round-0")
        if not first.exists():
            temporary = first.with_name(f".{first.name}.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(supervised[direction], temporary, ignore=shutil.ignore_patterns("wandb", ".lock"))
            temporary.rename(first)

    def _of_linear(self, method: str) -> float:
        features = f"classifier.baseline_features={FEATURES[method]}"
        figures = self._json(method, "baseline", "recipe.yaml", *self._base(), f"name={method}", features)
        return float(figures["test"]["accuracy"])

    def _of_ensemble(self, method: str) -> float:
        self_trained = "both-self-training" if method.startswith("both") else "self-training"
        trained = self_trained if "self-training" in method else "supervised"
        directions = DIRECTIONS if method.startswith("both") else DIRECTIONS[:1]
        runs = [self._run(trained, direction) for direction in directions]
        return ensemble_accuracy(runs, self._linear_answers() if "linear" in method else None)

    def _of_rounds(self, method: str) -> float:
        rounds = json.loads((self._run("self-training") / "self_training.json").read_text())["rounds"]
        runs = [f"runs/{one['run']}" for one in rounds]
        return float(self._json(method, "ensemble", *runs, "--with-baseline")["ensemble"]["test"]["accuracy"])

    def _linear_answers(self) -> Answers:
        overrides = [*self._overrides("supervised"), f"data.cache_dir={self.folder / 'cache'}"]
        return linear_answers(self.folder / f"linear-answers-{self.draw}.safetensors", overrides)

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


def table(accuracies: Mapping[tuple[int, str], Sequence[float]], num_test: int) -> str:
    """Return a line per number of labels and method: mean over the seeds, its 95 % interval, and standard deviation.

    The interval is that of the test documents (normal approximation); the deviation is that of the draws of the labels.
    """
    columns = f"{'labels':>8}  {'method':<26}{'accuracy':>9}{'low':>9}{'high':>9}{'sd':>8}  of each seed"
    lines = [machine(), columns]
    for (number, method), values in accuracies.items():
        mean = statistics.fmean(values)
        error = 1.96 * math.sqrt(mean * (1 - mean) / num_test)
        spread = f"{statistics.stdev(values):>8.4f}" if len(values) > 1 else f"{'':>8}"
        each = " ".join(f"{value:.4f}" for value in values)
        interval = f"{mean - error:>9.4f}{mean + error:>9.4f}"
        lines.append(f"{number:>8}  {method:<26}{mean:>9.4f}{interval}{spread}  {each}")
    return "\n".join(lines)


def measure(
    folder: Path,
    source: Path,
    labels: Iterable[int],
    seeds: Sequence[int],
    methods: Iterable[str],
    lm_epochs: int,
    precision: str,
) -> dict[tuple[int, str], list[float]]:
    """Train what is missing; return the accuracies of all seeds by number of labels and method."""
    accuracies: dict[tuple[int, str], list[float]] = {}
    for number in labels:
        for method in methods:
            draws = [Runs(folder, source, number, seed, lm_epochs, precision) for seed in seeds]
            accuracies[number, method] = [draw.accuracy(method) for draw in draws]
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
    parser.add_argument("source", metavar="FOLDER", type=Path)
    parser.add_argument("folder", metavar="WORK_FOLDER", type=Path)
    parser.add_argument("--labels", nargs="+", type=int, default=[100, 500, 2500, 25_000], metavar="NUMBER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="SEED")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument(
        "--lm-epochs",
        type=int,
        default=1,
        metavar="NUMBER",
        help="epochs of the language models",
    )
    parser.add_argument("--precision", default="auto", help="runtime.precision")
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    folder, source = args.folder.absolute(), args.source.absolute()
    num_test = len(pd.read_parquet(source / "test.parquet", columns=["label"]))
    accuracies = measure(folder, source, args.labels, args.seeds, args.methods, args.lm_epochs, args.precision)
    print(table(accuracies, num_test))


if __name__ == "__main__":
    main()
