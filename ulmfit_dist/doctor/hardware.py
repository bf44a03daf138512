"""Checks of the hardware and its software: packages, driver, CUDA, cuDNN, kernels for the GPU, and precision."""

from __future__ import annotations

import os

import torch

from ulmfit_dist.distributed.devices import driver_version, has_kernels, install_torch, uses_gpu
from ulmfit_dist.distributed.env import wants_cpu
from ulmfit_dist.distributed.precision import auto_precision, resolve_precision
from ulmfit_dist.doctor.checks import Context, Finding, failure, has_gpu, ok, skipped
from ulmfit_dist.utils.environment import versions

NO_GPU = "no GPU is visible"
"""Reason for skipping a check of GPUs."""


def check_versions(context: Context) -> Finding:
    """Report the versions of Python, torch and the packages that results depend on."""
    return ok(", ".join(f"{name} {version}" for name, version in versions().items()))


def check_device(context: Context) -> Finding:
    """Check the device of this rank. Raises UserError for GPUs that torch cannot use."""
    if not uses_gpu():
        threads = f"CPU, {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores"
        return ok(f"{threads}, because ACCELERATE_USE_CPU={os.environ['ACCELERATE_USE_CPU']}" if wants_cpu() else threads)
    if context.local_rank >= torch.cuda.device_count():
        return failure(
            f"LOCAL_RANK={context.local_rank}, but {torch.cuda.device_count()} GPU(s) are visible",
            "start one rank per GPU of the node (`accelerate launch --num_processes`), or check CUDA_VISIBLE_DEVICES",
        )
    capability = torch.cuda.get_device_capability(context.local_rank)
    return ok(f"{context.device}: {torch.cuda.get_device_name(context.local_rank)}, capability {_dotted(capability)}")


def check_cuda(context: Context) -> Finding:
    """Report driver, CUDA and cuDNN, and fail without cuDNN."""
    if not has_gpu():
        return skipped(NO_GPU)
    cudnn = torch.backends.cudnn.version()
    details = f"driver {driver_version()}, CUDA {torch.version.cuda}, cuDNN {cudnn or 'missing'}"
    return ok(details) if cudnn else failure(details, install_torch())


def check_kernels(context: Context) -> Finding:
    """Check that this torch has kernels for the GPU's compute capability."""
    if not has_gpu():
        return skipped(NO_GPU)
    capability, known = torch.cuda.get_device_capability(context.local_rank), torch.cuda.get_arch_list()
    if not has_kernels(capability, known):
        details = f"no kernels for capability {_dotted(capability)} in torch {torch.__version__}: it has {' '.join(known)}"
        return failure(details, install_torch())
    return ok(f"capability {_dotted(capability)} among {' '.join(known)}")


def check_precision(context: Context) -> Finding:
    """Report the resolved precision and the reason. Raises UserError if the device does not support it."""
    wanted = context.config.runtime.precision
    context.resolved = resolve_precision(wanted, has_gpu())
    name = context.resolved
    return ok(f"runtime.precision={wanted} resolves to {name}: {auto_precision(has_gpu())[1]}" if wanted == "auto" else name)


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
