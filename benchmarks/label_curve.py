"""Accuracy by number of labels on IMDb: ULMFiT from scratch, and TF-IDF with a linear classifier.

    python -m benchmarks.label_curve IMDB_FOLDER WORK_FOLDER

IMDB_FOLDER holds `train.parquet` and `test.parquet` with `text` and `label` (0, 1). All training reviews are in a fixed
random order; the first N of them keep their labels. One language model is trained on all 25,000 texts, without labels; each
classifier starts from it. 1,000 test reviews are `valid`, on which the baseline selects its C, and 5,000 others are `test`,
scored once. The configs are those that `init` writes for 30 minutes, with a larger model. If interrupted, the same command
resumes. It takes about an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

from benchmarks.machine import machine

NUM_LABELS = (100, 500, 2500)
MODEL = ["model.emb_sz=200", "model.n_hid=400", "model.n_layers=2", "data.on_duplicates=drop"]
LANGUAGE_MODEL = ["lm.drop_mult=0.1", "lm.phases=[{epochs: 1, lr: 1e-2, freeze_to: 0}]"]
COMMAND = [sys.executable, "-m", "ulmfit_dist"]
LAUNCHED = [sys.executable, "-m", "ulmfit_dist.launch", "--multi_gpu", "--num_processes", "2", "-m", "ulmfit_dist"]


def write_texts(source: Path, folder: Path, num_labels: int) -> None:
    """Write train, valid and test of a number of labels."""
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(0)
    train, test = (pd.read_parquet(source / f"{split}.parquet") for split in ("train", "test"))
    train, test = (frame.iloc[generator.permutation(len(frame))].reset_index(drop=True) for frame in (train, test))
    for frame in (train, test):
        frame["label"] = [("negative", "positive")[label] for label in frame.label]
    train.loc[num_labels:, "label"] = None
    for name, frame in {"train": train, "valid": test[:1000], "test": test[1000:6000]}.items():
        frame.to_parquet(folder / f"{name}.parquet")


def train(source: Path, folder: Path) -> None:
    """Train the language model, then a classifier and a baseline for each number of labels."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])

    def call(command: list[str], *argv: str) -> None:
        subprocess.run([*command, *argv], cwd=folder, env=environment, check=True)

    for number in NUM_LABELS:
        if not (folder / f"imdb{number}.yaml").exists():
            write_texts(source, folder / f"imdb{number}", number)
            call(COMMAND, "init", f"imdb{number}", "--minutes", "30")
    call(LAUNCHED, "lm", "imdb500.yaml", "name=curve_lm", *MODEL, *LANGUAGE_MODEL)
    for number in NUM_LABELS:
        names = [f"imdb{number}.yaml", f"name=curve_{number}"]
        call(LAUNCHED, "run", *names, *MODEL, "classifier.encoder=runs/curve_lm/lm")


def table(folder: Path) -> str:
    """Return a line per number of labels: accuracy on test, with 95 % intervals, of both models."""
    lines = [machine(), f"{'labels':>8}{'ULMFiT':>10}{'low':>8}{'high':>8}{'linear':>10}{'low':>8}{'high':>8}"]
    for number in NUM_LABELS:
        summary = json.loads((folder / f"runs/curve_{number}/summary.json").read_text())
        sides = [summary["classifier"]["test"], summary["baseline"]["test"]]
        cells = [
            f"{side['accuracy']:>10.4f}" + "".join(f"{end:>8.4f}" for end in side["accuracy_interval"]) for side in sides
        ]
        lines.append(f"{number:>8}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IMDB_FOLDER", type=Path)
    parser.add_argument("folder", metavar="WORK_FOLDER", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    train(args.source.absolute(), args.folder.absolute())
    print(table(args.folder))


if __name__ == "__main__":
    main()
