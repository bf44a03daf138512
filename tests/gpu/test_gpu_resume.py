"""Tests of interrupted and resumed runs on a GPU. Skipped without a GPU."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from killing import STAGES, finish, kill_all, metrics, same_bits, steps_noted, weights
from small_runs import DEVICE, PRECISIONS, make_texts, needs_gpu, small_config, small_words, train

from ulmfit_dist.training.train_steps import ClassifierLearner, LMLearner

pytestmark = needs_gpu

BROKEN_STEPS = {LMLearner: (20, 60), ClassifierLearner: (4, 17)}
"""Steps at which training is interrupted, between two checkpoints in the middle of an epoch."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("texts"))


@contextmanager
def breaking_off(kind: type, step: int) -> Iterator[None]:
    """Callback that raises an exception before a step."""
    train_step = kind._train_step

    def fail(self) -> None:
        if self.stage_step == step:
            raise RuntimeError("broken off")
        train_step(self)

    kind._train_step = fail
    try:
        with pytest.raises(RuntimeError, match="broken off"):
            yield
    finally:
        kind._train_step = train_step
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()


@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
def test_a_run_that_breaks_off_ends_with_the_bits_of_one_left_alone(precision: str, texts: Path, tmp_path: Path):
    words = f"runtime.precision={precision}", "runtime.deterministic=true"
    alone = train(small_config(texts, tmp_path, *words, "name=alone"), *STAGES)
    config = small_config(texts, tmp_path, *words, "name=broken")
    for stage, (kind, steps) in zip(STAGES, BROKEN_STEPS.items(), strict=True):
        for step in steps:
            with breaking_off(kind, step):
                train(config, stage)
        train(config, stage)
    assert same_bits(config.run_dir, alone)
    assert str(metrics(config.run_dir)) == str(metrics(alone))  # as text: a norm may be NaN where a step was left out


def start(words: list[str], notes: Path) -> subprocess.Popen[str]:
    """Start a command of `ulmfit-dist` on the device that records the batches that it reads in a folder."""
    notes.mkdir(exist_ok=True)
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)])  # the simulated GPU begins there
    environment = {**os.environ, "ACCELERATE_USE_CPU": str(DEVICE.type == "cpu").lower(), "PYTHONPATH": path}
    command = [sys.executable, str(ROOT / "tests/recorded.py"), str(notes), *words, "--verbose"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)


def test_a_command_that_is_killed_goes_on_to_the_bits_of_one_left_alone(texts: Path, recipe: Path, tmp_path: Path):
    words = ["lm", str(recipe), *small_words(texts, tmp_path, "runtime.precision=fp32", "runtime.deterministic=true")]
    finish(start([*words, "name=alone"], tmp_path / "notes of one left alone"))
    notes = tmp_path / "notes"
    process = start([*words, "name=killed"], notes)
    while steps_noted(notes) < 60 * 8:  # a line for each of eight rows
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    kill_all(process)
    assert not (tmp_path / "killed" / "lm").exists()
    output = finish(start([*words, "name=killed"], notes))
    assert "lm: resumes from" in output
    assert "step-00000000" not in output
    actual, expected = (weights(tmp_path / name, "lm") for name in ("killed", "alone"))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
