"""Device selection: the GPUs that torch can use, or CPUs.

GPUs that exist but cannot be used are an error, never a silent fallback to CPUs: a driver too old for this torch, a GPU
without kernels in it, a torch built without CUDA. `python -m ulmfit_dist.distributed.devices` prints the number of GPUs
for the launch scripts.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

from ulmfit_dist.distributed.env import report_error, wants_cpu
from ulmfit_dist.distributed.launch_settings import find_launcher
from ulmfit_dist.errors import USER_ERROR, UserError
from ulmfit_dist.utils.package_files import is_checkout

DRIVER = Path("/proc/driver/nvidia")
"""Folder of files in which NVIDIA's driver describes itself and its GPUs."""
DEVICES = Path("/dev")
"""Folder of device files."""


def uses_gpu() -> bool:
    """Return whether this process computes on a GPU: False if none is visible, or if ACCELERATE_USE_CPU is true.

    Raises:
        UserError: if this torch cannot use a visible GPU, or ACCELERATE_USE_CPU is neither true nor false.
    """
    if wants_cpu() or launcher_wants_cpu():
        return False
    if _is_available():
        _check_kernels()
        return True
    if torch.cuda.device_count() > 0 and not _is_refused():
        raise UserError(
            f"{torch.cuda.device_count()} GPU(s) ({_model()}) cannot be used: driver {driver_version()} ({_driver_cuda()}), "
            f"torch {torch.__version__} built for CUDA {torch.version.cuda}: update the driver, or {_fix()}"
        )
    if torch.version.cuda is None and torch.version.hip is None and _has_nvidia_gpu():
        raise UserError(
            f"this machine has a GPU ({_model()}, driver {driver_version()}), but torch {torch.__version__} is built "
            f"without CUDA: {_fix()}"
        )
    return False


def launcher_wants_cpu() -> bool:
    """Return whether ACCELERATE_USE_CPU is true for the launcher, which may pass Accelerate's default `False` to a rank."""
    if os.environ.get("ACCELERATE_USE_CPU") != "False":
        return False
    launcher = find_launcher()
    return launcher is not None and wants_cpu(launcher.environ)


def local_device() -> torch.device:
    """Return the device of this process without joining a process group: its rank's GPU, or the CPU. Raises UserError."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if uses_gpu() else torch.device("cpu")


def has_kernels(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Return whether a torch built for these architectures runs on a GPU of this compute capability.

    A binary (`sm_80`) runs on GPUs of the same major version and at least its minor version, PTX (`compute_90`) on all
    later GPUs; with the suffix `a` (`sm_90a`), both run on that version only.
    """
    device = 10 * capability[0] + capability[1]
    for architecture in architectures:
        code, version, suffix = re.fullmatch(r"([a-z]+)_(\d+)([a-z]?)", architecture).groups()  # type: ignore[union-attr]
        is_later = device >= int(version)
        if is_later and device // 10 == int(version) // 10 and (suffix != "a" or device == int(version)):
            return True
        if is_later and code == "compute" and not suffix:
            return True
    return False


def install_torch() -> str:
    """Return how to install a torch that fits the driver, with the command of a checkout if this is one."""
    index = "the 'Get started' page of pytorch.org lists an index per CUDA version"
    if is_checkout():
        return f"install a matching torch with `TORCH_INDEX=... bash launch/setup.sh` ({index})"
    return f"install a matching torch with `pip install --force-reinstall --index-url ... torch` ({index})"


def driver_version() -> str:
    """Return the version of NVIDIA's driver, such as "550.54.14"; "unknown" if it cannot be read."""
    match = re.search(r"\s(\d{3,}\.\d+(\.\d+)*)\s", _read(DRIVER / "version"))
    return match[1] if match else "unknown"


def main() -> int:
    """Print the number of GPUs to train on; 0 for CPUs."""
    try:
        print(torch.cuda.device_count() if uses_gpu() else 0)
    except UserError as error:
        report_error(error)
        return USER_ERROR
    return 0


def _fix() -> str:
    return f"{install_torch()}, or compute on CPUs with --device cpu or ACCELERATE_USE_CPU=1"


def _is_available() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an old driver, which our error reports
        return torch.cuda.is_available()


def _check_kernels() -> None:
    """Check that torch has kernels for the GPUs of this node's ranks. Raises UserError."""
    architectures = torch.cuda.get_arch_list() if torch.version.cuda is not None else []
    num_used = min(torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    for index in range(num_used if architectures else 0):
        capability = torch.cuda.get_device_capability(index)
        if not has_kernels(capability, architectures):
            raise UserError(
                f"GPU {index} ({torch.cuda.get_device_name(index)}, compute capability {capability[0]}.{capability[1]}, "
                f"driver {driver_version()}): torch {torch.__version__} for CUDA {torch.version.cuda} has kernels for "
                f"{', '.join(architectures)} only: {_fix()}"
            )


def _has_nvidia_gpu() -> bool:
    """Return whether a torch with CUDA would find a GPU: the driver is loaded, and a device file can be opened."""
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not is_hidden and (DRIVER / "version").exists() and any(map(_can_open, _device_files()))


def _is_refused() -> bool:
    """Return whether this process may open no GPU, as in a SLURM job without GPUs, where the driver still counts them."""
    files = _device_files()
    return bool(files) and not any(map(_can_open, files))


def _device_files() -> list[Path]:
    return [path for path in DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]


def _can_open(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDWR))
    except OSError:
        return False
    return True


def _driver_cuda() -> str:
    """Return the newest CUDA version that the driver supports, as a phrase."""
    version = getattr(torch._C, "_cuda_getDriverVersion", lambda: 0)()
    return f"supports CUDA {version // 1000}.{version % 1000 // 10} at most" if version else "CUDA unknown"


def _model() -> str:
    """Return the model of the first GPU, as reported by the driver."""
    files = sorted(DRIVER.glob("gpus/*/information"))
    match = re.search(r"^Model:\s*(.+)$", _read(files[0]) if files else "", re.MULTILINE)
    return match[1].strip() if match else "model unknown"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
