"""Tests of training steps on a GPU: results, and absence of syncs. Skipped without a GPU."""

import shutil
from pathlib import Path

import pytest
import torch
from killing import STAGES
from safetensors.torch import load_file
from small_runs import PRECISIONS, make_texts, needs_cuda, needs_gpu, small_config, train, without_tf32
from torch import Tensor

from ulmfit_dist.checkpointing import callback
from ulmfit_dist.training.train_steps import LMLearner

pytestmark = needs_gpu

CPU = torch.device("cpu")
ONE_STEP = (
    "lm={global_batch_size: 64, seq_len: 72, drop_mult: 1.0}",
    "lm.phases=[{epochs: 1, lr: 0.25}]",
    "classifier={global_batch_size: 128, drop_mult: 1.0}",
    "classifier.phases=[{epochs: 1, lr: 0.25}]",
    "runtime.precision=fp32",
)
"""Overrides for an epoch of a single step, at 1/25 of that learning rate, with fastai's full dropout."""
FIRST_STEP, LAST_STEP = 12, 22


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_texts(tmp_path_factory.mktemp("texts"))


def checkpoint(run: Path, stage: str, step: int) -> Tensor:
    """Return all weights and running means of batch norms as one vector."""
    tensors = load_file(run / f"checkpoints/{stage}/step-{step:08d}/model.safetensors")
    return torch.cat([tensors[name].flatten() for name in sorted(tensors) if tensors[name].is_floating_point()])


def test_an_optimizer_step_is_that_of_a_cpu(texts: Path, tmp_path: Path):
    on_cpu, on_gpu = (small_config(texts, tmp_path, *ONE_STEP, f"name={name}") for name in ("on-cpu", "on-gpu"))
    train(on_cpu, *STAGES, device=CPU)
    with without_tf32():
        train(on_gpu, "lm")
        shutil.copytree(on_cpu.run_dir / "lm", on_gpu.run_dir / "lm", dirs_exist_ok=True)
        train(on_gpu, "classifier")
    for stage in STAGES:
        before, after = (checkpoint(on_cpu.run_dir, stage, step) for step in (0, 1))
        assert torch.equal(checkpoint(on_gpu.run_dir, stage, 0), before)
        assert (checkpoint(on_gpu.run_dir, stage, 1) - after).norm() < 1e-4 * (after - before).norm()


@needs_cuda
@pytest.mark.parametrize("precision", ["fp32", PRECISIONS[0]])
def test_nothing_waits_for_the_gpu_in_a_step(precision: str, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the two steps no line is logged, and the ranks exchange no status."""
    words = (
        "checkpoint={interval_steps: null, interval_minutes: null}",
        "tracking.log_interval=1000",
        f"runtime.precision={precision}",
    )
    train_step, steps = LMLearner._train_step, []

    def watched(self) -> None:
        steps.append(self.stage_step)
        if self.stage_step in (FIRST_STEP, LAST_STEP):
            torch.cuda.set_sync_debug_mode("error" if self.stage_step == FIRST_STEP else "default")
        train_step(self)

    monkeypatch.setattr(LMLearner, "_train_step", watched)
    monkeypatch.setattr(callback, "SECONDS_BETWEEN_EXCHANGES", 1e9)
    monkeypatch.setattr(callback, "MAX_STEPS_BETWEEN_EXCHANGES", 1000)
    try:
        train(small_config(texts, tmp_path, *words, "lm.phases=[{epochs: 1}]", "runtime.micro_batch_size=4"), "lm")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) > LAST_STEP
