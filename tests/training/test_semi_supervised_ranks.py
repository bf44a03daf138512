"""Semi-supervised training on one rank, two, four and in micro-batches, and after a kill: real processes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY, succeed
from killing import finish, kill_all, start, wait_for_step, weights
from test_world_size import assert_same_lines, lines

OVERRIDES = (
    *TINY,
    "data={source: parquet, splits: {train: train, valid: valid, unlabelled: unlabelled}, valid_pct: 0.1}",
    "lm.phases=[{epochs: 1, lr: 1e-2}]",
    "classifier.phases=[{epochs: 1, lr: 2e-2, freeze_to: -1}, {epochs: 2, lr: [2e-3, 1e-2]}]",
    "classifier.grad_clip=0.1",
    "classifier.unlabelled={batch_size: 12, entropy_weight: 0.5, adversarial_weight: 1.0, virtual_adversarial_weight: 1.0}",
    "checkpoint.interval_steps=4",
    "tracking={trackers: [], log_interval: 1}",
)
CUTS = {
    "one": (1, []),
    "two-accumulated": (2, ["runtime.micro_batch_size=3"]),
    "two": (2, []),
    "four": (4, []),
    "accumulated": (1, ["runtime.micro_batch_size=2"]),
}


def write_texts(folder: Path) -> None:
    """Write documents whose class follows from some of their words."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split, number in (("train", 61), ("valid", 40), ("unlabelled", 90)):
        classes = np.arange(number) % 2
        texts = [
            " ".join(
                f"w{word}" if generator.random() < 0.8 else ("good", "bad")[c]
                for word in generator.integers(0, 40, generator.integers(5, 45))
            )
            for c in classes
        ]
        labels = pd.Series([None] * number if split == "unlabelled" else np.array(["p", "n"])[classes], dtype=object)
        pd.DataFrame({"text": texts, "label": labels}).to_parquet(folder / f"{split}.parquet")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> list[object]:
    """Words of a run on a language model that exists."""
    folder = tmp_path_factory.mktemp("semi")
    write_texts(folder / "texts")
    words = [recipe, *OVERRIDES, f"data.path={folder}/texts", f"data.cache_dir={folder}", f"runs_dir={folder}"]
    succeed(["lm", *words, "name=base", "runtime.precision=fp32"])
    return [*words, f"classifier.encoder={folder}/base/lm"]


def test_ranks_and_micro_batches_do_not_change_the_model(shared: list[object]):
    folder = Path(str(shared[-2]).partition("=")[2])
    for name, (processes, cut) in CUTS.items():
        succeed(["run", *shared, *cut, f"name={name}", "runtime.precision=fp64"], processes)
    for name in list(CUTS)[1:]:
        assert_same_lines(lines(folder / name), lines(folder / "one"), rel=1e-9)
        expected = weights(folder / "one", "classifier")
        torch.testing.assert_close(weights(folder / name, "classifier"), expected, rtol=1e-9, atol=1e-9)
    logged = [line for line in lines(folder / "one") if "classifier/loss" in line]
    names = ["classifier/entropy", "classifier/adversarial_loss", "classifier/virtual_adversarial_loss"]
    assert all(line[name] > 0 for line in logged for name in names)


def test_a_killed_run_ends_with_the_bits_of_one_left_alone(shared: list[object], tmp_path: Path):
    words = ["run", *shared, "runtime.canonical_ranks=4", f"runs_dir={tmp_path}"]
    finish(start([*words, "name=alone"], 1, tmp_path / "alone-notes"))
    process = start([*words, "name=killed"], 2, tmp_path / "notes")
    wait_for_step(process, tmp_path / "notes", "classifier", 13)
    kill_all(process)
    finish(start([*words, "name=killed"], 1, tmp_path / "notes"))
    expected, actual = (weights(tmp_path / name, "classifier") for name in ("alone", "killed"))
    assert all(torch.equal(actual[name], tensor) for name, tensor in expected.items())
    assert_same_lines(lines(tmp_path / "killed"), lines(tmp_path / "alone"), rel=1e-9)
