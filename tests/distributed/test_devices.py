"""Tests of device selection: GPUs that exist but cannot be used are an error, never a run on CPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from ulmfit_dist.distributed import devices
from ulmfit_dist.distributed.devices import driver_version, has_kernels, uses_gpu
from ulmfit_dist.distributed.env import chosen_device, wants_cpu
from ulmfit_dist.distributed.launch_settings import Launcher
from ulmfit_dist.errors import UserError

VERSION = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024\nGCC version: 11.4.0\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a machine with NVIDIA's driver and one GPU, which torch with CUDA 13.0 does not find."""
    (tmp_path / "nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    (tmp_path / "nvidia/version").write_text(VERSION)
    (tmp_path / "nvidia/gpus/0000:01:00.0/information").write_text("Model: \t\t NVIDIA A100-SXM4-40GB\nIRQ:   \t\t 1\n")
    (tmp_path / "nvidia0").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(devices, "DRIVER", tmp_path / "nvidia")
    monkeypatch.setattr(devices, "DEVICES", tmp_path)
    for name in ("ACCELERATE_USE_CPU", "CUDA_VISIBLE_DEVICES", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 11040, raising=False)
    return tmp_path


def test_a_driver_too_old_is_one_line_that_names_driver_cuda_and_gpu(machine: Path):
    with pytest.raises(UserError) as caught:
        uses_gpu()
    message = str(caught.value)
    assert "\n" not in message
    for part in ("NVIDIA A100-SXM4-40GB", "470.256.02", "CUDA 11.4 at most", "CUDA 13.0"):
        assert part in message
    assert "TORCH_INDEX=" in message
    assert "ACCELERATE_USE_CPU=1" in message


def test_unreadable_driver_files_still_give_the_error(machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(devices, "DRIVER", machine / "missing")
    monkeypatch.delattr(torch._C, "_cuda_getDriverVersion")
    with pytest.raises(UserError, match=r"model unknown.*driver unknown.*CUDA unknown"):
        uses_gpu()


def test_cpus_are_used_on_purpose(machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert not uses_gpu()


def test_a_launchers_environment_decides_where_accelerate_gives_its_default(machine: Path, monkeypatch: pytest.MonkeyPatch):
    """`ACCELERATE_USE_CPU=1 accelerate launch` starts a single process with ACCELERATE_USE_CPU=False."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    launcher = Launcher([], {"ACCELERATE_USE_CPU": "1"})
    monkeypatch.setattr(devices, "find_launcher", lambda: launcher)
    assert not uses_gpu()
    for other in (Launcher([], {}), None):
        monkeypatch.setattr(devices, "find_launcher", lambda other=other: other)
        with pytest.raises(UserError, match="cannot be used"):
            uses_gpu()


def test_a_process_that_may_open_no_gpu_has_none(machine: Path, monkeypatch: pytest.MonkeyPatch):
    """The driver counts GPUs of the machine that are not allocated to a SLURM job."""
    monkeypatch.setattr(devices, "_can_open", lambda path: False)
    assert not uses_gpu()


def test_a_torch_without_cuda_on_a_machine_with_gpus_is_an_error(machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"NVIDIA A100-SXM4-40GB, driver 470\.256\.02.*built without CUDA: install"):
        uses_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not uses_gpu()


def test_a_container_that_sees_the_driver_but_no_gpu_computes_on_cpus(machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (machine / "nvidia0").unlink()
    assert not uses_gpu()


def test_a_gpu_without_kernels_in_this_torch_is_one_line_that_names_it(machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "compute_90"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(8, 0), (6, 1)][index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: ["A100", "NVIDIA GeForce GTX 1080"][index])
    assert uses_gpu()  # one rank, on the first GPU
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(
        UserError, match=r"GPU 1 \(NVIDIA GeForce GTX 1080, compute capability 6\.1, driver 470.*CUDA 13.*sm_75"
    ):
        uses_gpu()


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((8, 0), "sm_80", True),
        ((8, 6), "sm_80", True),  # binaries run on later GPUs of the same major version
        ((8, 0), "sm_86", False),
        ((9, 0), "sm_80", False),
        ((9, 0), "compute_80", True),  # PTX is compiled for any later GPU
        ((7, 0), "compute_75", False),
        ((9, 0), "sm_90a", True),
        ((12, 0), "sm_120a compute_100f", True),
        ((12, 1), "sm_120a", False),
        ((10, 3), "sm_100f", True),
        ((12, 0), "compute_90a", False),
        ((12, 0), "sm_50 sm_90 compute_90", True),
        ((3, 7), "sm_50 sm_60 sm_70", False),
    ],
)
def test_kernels_fit_a_gpu_as_nvidia_defines_it(capability: tuple[int, int], architectures: str, expected: bool):
    assert has_kernels(capability, architectures.split()) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (VERSION, "470.256.02"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build  (dvs)\n", "550.54.14"),
        ("", "unknown"),
    ],
)
def test_the_version_of_the_driver_is_read(text: str, expected: str, machine: Path):
    (machine / "nvidia/version").write_text(text)
    assert driver_version() == expected


@pytest.mark.parametrize("value", ["1", "yes", "Yes", "true", "True", "TRUE", "on", "y"])
def test_values_that_request_cpus(value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    assert wants_cpu()


@pytest.mark.parametrize("value", [None, "0", "no", "false", "False", "off"])
def test_values_that_do_not(value: str | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", value or "false")
    if value is None:
        monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert not wants_cpu()


def test_another_value_is_one_line_and_exit_code_2(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "cpu")
    done = subprocess.run(
        [sys.executable, "-m", "ulmfit_dist.distributed.devices"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ulmfit-dist: error: ACCELERATE_USE_CPU='cpu': give true or false\n"


@pytest.mark.parametrize(("value", "expected"), [("1", "cpu"), ("Yes", "cpu"), ("", "gpu"), ("off", "gpu"), ("maybe", "")])
def test_the_scripts_read_the_same_values(value: str, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", value)
    script = "set -eu; source launch/functions.sh; if wants_cpu; then echo cpu; else echo gpu; fi"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (expected, 0 if expected else 2)
    assert ("ACCELERATE_USE_CPU=maybe: give true or false" in done.stderr) is (expected == "")


@pytest.mark.parametrize("before", [None, "false"])
def test_device_cpu_replaces_the_environment_until_the_command_ends(
    machine: Path, before: str | None, monkeypatch: pytest.MonkeyPatch
):
    if before is not None:
        monkeypatch.setenv("ACCELERATE_USE_CPU", before)
    with chosen_device("cpu"):
        assert not uses_gpu()
    assert os.environ.get("ACCELERATE_USE_CPU") == before


def test_device_cuda_needs_a_gpu(machine: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="cannot be used"), chosen_device("cuda"):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="--device cuda: no GPU is visible"), chosen_device("cuda"):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "_check_kernels", lambda: None)
    with chosen_device("cuda"):
        assert uses_gpu()


def test_device_cuda_contradicts_an_environment_that_chooses_cpus(machine: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    with pytest.raises(UserError, match="--device cuda, but ACCELERATE_USE_CPU=true"), chosen_device("cuda"):
        pass
