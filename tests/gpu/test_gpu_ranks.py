"""Tests of two ranks on two GPUs against one rank, with both stages. Skipped without two GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from killing import STAGES, metrics
from small_runs import DEVICE, IS_SIMULATED, PRECISIONS, make_texts, small_config, small_words, train

HAS_TWO_GPUS = DEVICE.type == "cuda" and torch.cuda.is_available() and torch.cuda.device_count() >= 2
pytestmark = pytest.mark.skipif(not HAS_TWO_GPUS, reason="two GPUs are needed")

SHORT = (
    "lm.phases=[{epochs: 1, lr: 1e-2, freeze_to: -1}, {epochs: 1, lr: 1e-2}]",
    "classifier.phases=[{epochs: 1, lr: 1e-2, freeze_to: -1}, {epochs: 1, lr: [8e-3, 1e-2]}]",
    "checkpoint.interval_steps=null",
)
Notes = dict[int, list[dict]]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("texts"), 48)


@pytest.fixture(scope="module", params=["fp32", *PRECISIONS])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(precision: str, texts: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the runs `one` and `two` with one and two ranks, and the records of the latter."""
    made = tmp_path_factory.mktemp(f"ranks-{precision}")
    words = *SHORT, f"runtime.precision={precision}"
    train(small_config(texts, made, *words, "name=one"), *STAGES)
    launch(made, ["run", str(recipe), *small_words(texts, made, *words, "name=two")])
    return made


def launch(notes: Path, words: list[str]) -> str:
    """Run a command of `ulmfit-dist` on two ranks that write records to a folder, and return its output."""
    options = ["--config_file", str(ROOT / "configs/accelerate/multi_gpu.yaml"), "--num_processes", "2"]
    command = [sys.executable, "-m", "ulmfit_dist.launch", *options, str(ROOT / "tests/gpu/rank_notes.py"), str(notes)]
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), *map(str, (ROOT, ROOT / "tests"))])
    environment = {**os.environ, "ACCELERATE_USE_CPU": "false", "PYTHONPATH": path}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    result = subprocess.run([*command, *words], cwd=ROOT, env=environment, text=True, timeout=300, check=False, **pipes)
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def notes(folder: Path) -> Notes:
    return {rank: [*map(json.loads, (folder / f"rank{rank}.jsonl").read_text().splitlines())] for rank in (0, 1)}


def test_each_rank_has_a_gpu_of_its_own(notes: Notes):
    assert {line["device"] for line in notes[0]} == {"cuda:0"}
    assert {line["device"] for line in notes[1]} == {"cuda:1"}


def test_both_ranks_have_the_same_weights_after_each_phase(notes: Notes):
    first, second = ([(line["stage"], line["weights"]) for line in notes[rank]] for rank in (0, 1))
    assert [stage for stage, _ in first] == ["lm", "lm", "classifier", "classifier"]
    assert first == second


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_as_one_does(stage: str, folder: Path, precision: str):
    actual, expected = (
        [line[key] for line in metrics(folder / run) for key in (f"{stage}/loss", f"{stage}/valid_loss") if key in line]
        for run in ("two", "one")
    )
    assert len(actual) > 4
    assert actual == pytest.approx(expected, rel=1e-3 if precision == "fp32" else 3e-2)


@pytest.mark.skipif(not IS_SIMULATED, reason="counted on the simulated GPU; on a real one torch's warning says it")
def test_no_rank_computes_an_lstm_from_scattered_weights(notes: Notes):
    for line in (*notes[0], *notes[1]):
        assert line["lstms"] > 0
        assert line["scattered"] == 0


@pytest.mark.skipif(not IS_SIMULATED, reason="counted on the simulated GPU")
def test_no_rank_waits_for_its_gpu_in_a_step(notes: Notes):
    """Each of the steps logs a line."""
    assert [line["waits"] for line in (*notes[0], *notes[1])] == [{}] * 8


def test_gradients_in_bf16_leave_both_ranks_with_the_same_weights(texts: Path, recipe: Path, tmp_path: Path):
    words = *SHORT, "runtime.precision=fp32", "runtime.gradient_compression=bf16", "name=run"
    launch(tmp_path, ["lm", str(recipe), *small_words(texts, tmp_path, *words)])
    first, second = ((tmp_path / f"rank{rank}.jsonl").read_text().splitlines() for rank in (0, 1))
    assert [json.loads(line)["weights"] for line in first] == [json.loads(line)["weights"] for line in second]
