"""Tests of `ulmfit-dist doctor` on a GPU. Skipped without a GPU."""

import json
import os
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, command
from doctors import context_of
from small_runs import DEVICE, PRECISIONS, needs_cuda, needs_gpu

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.doctor import performance, services
from ulmfit_dist.doctor.checks import Finding, Status
from ulmfit_dist.doctor.suite import doctor
from ulmfit_dist.doctor.synthetic import LocalStep

pytestmark = [needs_gpu, needs_cuda]

SIZES = ("model={emb_sz: 24, n_hid: 40, n_layers: 2}", "tokenizer.max_vocab=300", "lm={global_batch_size: 8, seq_len: 12}")


@pytest.fixture(autouse=True)
def _gpu_is_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def examined(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict:
    words = [*SIZES, "classifier={global_batch_size: 16, seq_len: 12, max_len: 24}", "tracking.wandb_mode=disabled", *more]
    config = load_config(None, ["data.path=.", f"runs_dir={folder}/runs", f"data.cache_dir={folder}/cache", *words])
    doctor(config, as_json=True)
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("precision", ["fp32", *PRECISIONS])
def test_every_check_of_a_gpu_is_made(precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = examined(tmp_path, capsys, f"runtime.precision={precision}")
    checks = {actual["check"]: actual for actual in content["checks"]}
    assert content["ok"]
    for name in (
        "device",
        "driver, CUDA, cuDNN",
        "kernels for this GPU",
        "Philox",
        "LSTM",
        "fused loss",
        "lm: a step against the CPU",
        "classifier: a step against the CPU",
        "lm: the same steps twice",
        "no GPU syncs",
        "speed",
        "largest batch",
    ):
        assert checks[name]["status"] in ("ok", "warning"), checks[name]
    assert str(DEVICE.type) in checks["device"]["details"]
    assert "fp32" in checks["lm: a step against the CPU"]["details"]
    assert f"runtime.precision={precision}" in content["overrides"]
    assert content["measured"]["largest_batch"] >= 8


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_ranks_have_a_gpu_each(tmp_path: Path):
    words = [
        "doctor",
        *SIZES,
        f"runs_dir={tmp_path}/runs",
        f"data.cache_dir={tmp_path}/cache",
        "tracking.wandb_mode=disabled",
        "--json",
    ]
    path = os.environ.get("PYTHONPATH", str(ROOT))  # also makes the processes simulate, where this one does
    done = command(words, processes=2, ACCELERATE_USE_CPU="false", PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {actual["check"]: actual for actual in json.loads(done.stdout)["checks"]}
    assert "one GPU each" in checks["one device each"]["details"]
    assert "GB/s inside the node" in checks["all-reduce"]["details"]
    for name in ("heartbeat", "object collectives", "lm: the same steps twice", "largest batch"):
        assert checks[name]["ranks"] == {"0": "ok", "1": "ok"}


def test_the_largest_batch_is_the_last_one_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    backward = LocalStep.backward

    def limited(self):
        if self.x.is_cuda and len(self.x) > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(self)

    monkeypatch.setattr(LocalStep, "backward", limited)
    content = examined(tmp_path, capsys, "runtime.precision=fp32")
    assert content["measured"]["largest_batch"] == 32
    assert "lm.global_batch_size=32" in content["overrides"]


def largest_batch(folder: Path, monkeypatch: pytest.MonkeyPatch, most_rows: int) -> Finding:
    """Run only the check of the largest batch, on a GPU whose memory holds at most `most_rows` rows."""
    backward = LocalStep.backward

    def limited(self):
        if len(self.x) > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(self)

    monkeypatch.setattr(LocalStep, "backward", limited)
    return performance.check_largest_batch(context_of(folder, "lm={global_batch_size: 8, seq_len: 12}"))


def test_a_config_whose_batch_does_not_fit_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    actual = largest_batch(tmp_path, monkeypatch, 7)
    assert actual.status is Status.FAILURE
    assert "lm.global_batch_size=8 does not fit the memory" in actual.details
    assert "runtime.micro_batch_size" in actual.fix


def test_the_search_for_the_largest_batch_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(performance, "SECONDS", 0.0)
    actual = largest_batch(tmp_path, monkeypatch, 32)
    assert actual.status is Status.OK
    assert "lm.global_batch_size=8, 8 rows per rank; search ended at its time limit" in actual.details


def test_gpus_of_a_slurm_node_without_ranks_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "4", "LOCAL_WORLD_SIZE": "2"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    actual = services.check_slurm(context_of(tmp_path))
    assert actual.status is Status.WARNING
    assert "4 GPU(s) on this node" in actual.details
    assert "2 rank(s) on this node" in actual.details
    assert "start 4 ranks per node" in actual.fix
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert services.check_slurm(context_of(tmp_path)).status is Status.OK


def test_a_step_that_waits_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    assert os.environ["ACCELERATE_USE_CPU"] == "false"
    train_steps = performance.train_steps

    def waiting(learner, steps, watch):
        def wait(step):
            watch(step)
            learner.loss.item()

        train_steps(learner, steps, wait)

    monkeypatch.setattr(performance, "train_steps", waiting)
    content = examined(tmp_path, capsys, "runtime.precision=fp32")
    (actual,) = [actual for actual in content["checks"] if actual["check"] == "no GPU syncs"]
    assert actual["status"] == "warning"
    assert "synchronize with the GPU" in actual["details"]
