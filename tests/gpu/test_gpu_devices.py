"""`--device` on a machine with a GPU, and what is for CPUs only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_classifiers import lettered_store, make_classifier
from small_runs import needs_cuda, needs_gpu

from ulmfit_dist.cli.main import main
from ulmfit_dist.distributed import devices
from ulmfit_dist.distributed.env import chosen_device
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.predictor import TextClassifier

pytestmark = [needs_gpu, needs_cuda]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_classifier(tmp_path / "run", lettered_store(tmp_path / "store"))


def test_device_cuda_is_the_gpu_and_device_cpu_is_not():
    with chosen_device("cuda"):
        assert devices.local_device() == torch.device("cuda", 0)
    with chosen_device("cpu"):
        assert devices.local_device() == torch.device("cpu")


def test_device_cuda_contradicts_an_environment_that_chooses_cpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(UserError, match="--device cuda, but ACCELERATE_USE_CPU=true"), chosen_device("cuda"):
        pass


def test_device_cuda_needs_a_visible_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(devices, "_has_nvidia_gpu", lambda: False)
    with pytest.raises(UserError, match="--device cuda: no GPU is visible"), chosen_device("cuda"):
        pass


def test_predict_labels_a_table_on_the_gpu_as_on_the_cpu(run: Path, tmp_path: Path):
    (tmp_path / "a.txt").write_text("a b c\nx y z\n\n")
    for device in ("cuda", "cpu"):
        argv = ["predict", str(run), "--file", str(tmp_path / "a.txt"), "--output", str(tmp_path / f"{device}.csv")]
        assert main([*argv, "--device", device]) == 0
    labels = [
        [row.split(",")[1] for row in (tmp_path / f"{device}.csv").read_text().splitlines()] for device in ("cuda", "cpu")
    ]
    assert labels[0] == labels[1]


def test_int8_is_for_cpus(run: Path):
    with pytest.raises(UserError, match="quantize=int8 is for CPUs, but the device is cuda"):
        TextClassifier(run, "cuda", quantize="int8")
