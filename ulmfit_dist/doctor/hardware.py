"""Checks of what a rank computes on: packages, driver, CUDA, cuDNN, the GPU's kernels, and the precision of `auto`."""

from __future__ import annotations

import os
import shutil
import subprocess

import torch

from ulmfit_dist.doctor.checks import Context, Finding, failure, has_gpu, ok, skipped, warning
from ulmfit_dist.environment import versions
from ulmfit_dist.precision import resolve_precision
from ulmfit_dist.terminal import PRECISION_NAMES

NO_GPU = "no GPU is visible"
TORCH_INDEX = "https://download.pytorch.org/whl/"


def check_versions(context: Context) -> Finding:
    """Versions of Python, torch and the packages that numbers depend on."""
    return ok(", ".join(f"{name} {version}" for name, version in versions().items()))


def check_device(context: Context) -> Finding:
    """The device of this rank: a GPU, or the CPU where no GPU is there, or is wanted."""
    if has_gpu():
        if context.local_rank >= torch.cuda.device_count():
            return failure(
                f"LOCAL_RANK={context.local_rank}, but {torch.cuda.device_count()} GPU(s) are visible",
                "start one rank per GPU of the node (`accelerate launch --num_processes`), or check CUDA_VISIBLE_DEVICES",
            )
        capability = torch.cuda.get_device_capability(context.local_rank)
        return ok(f"{context.device}: {torch.cuda.get_device_name(context.local_rank)}, capability {_dotted(capability)}")
    threads = f"CPU, {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores"
    if torch.cuda.is_available():
        return ok(f"{threads}; GPUs are left aside, because ACCELERATE_USE_CPU={os.environ['ACCELERATE_USE_CPU']}")
    gpus, driver = _gpus_of_driver()
    if gpus:
        return failure(
            f"nvidia-smi names {gpus} GPU(s) (driver {driver}), but this torch ({torch.__version__}, CUDA "
            f"{torch.version.cuda}) cannot use them",
            f"install a torch for this driver: pip install torch --index-url {TORCH_INDEX}cuXXX; or update the driver; or "
            f"set ACCELERATE_USE_CPU=true",
        )
    return ok(threads)


def check_cuda(context: Context) -> Finding:
    """Driver, CUDA and cuDNN."""
    if not has_gpu():
        return skipped(NO_GPU)
    _, driver = _gpus_of_driver()
    cudnn = torch.backends.cudnn.version()
    found = f"driver {driver or 'unknown (no nvidia-smi)'}, CUDA {torch.version.cuda}, cuDNN {cudnn or 'missing'}"
    if not cudnn:
        return failure(found, f"install a torch with cuDNN: pip install torch --index-url {TORCH_INDEX}cuXXX")
    return ok(found)


def check_kernels(context: Context) -> Finding:
    """Kernels in this torch for this GPU's capability."""
    if not has_gpu():
        return skipped(NO_GPU)
    capability, known = torch.cuda.get_device_capability(context.local_rank), torch.cuda.get_arch_list()
    if not known:
        return warning("this torch names no capabilities that it has kernels for", "install a torch with CUDA")
    if not _has_kernels(capability, known):
        return failure(
            f"no kernels for capability {_dotted(capability)} in torch {torch.__version__}: it has {' '.join(known)}",
            f"install a torch for this GPU: pip install torch --index-url {TORCH_INDEX}cuXXX",
        )
    return ok(f"capability {_dotted(capability)} among {' '.join(known)}")


def check_precision(context: Context) -> Finding:
    """What runtime.precision comes to on this machine, and why."""
    wanted = context.config.runtime.precision
    resolved, reason = choose_precision(context)
    context.resolved = resolved
    name = PRECISION_NAMES.get(resolved, resolved)
    return ok(f"runtime.precision={wanted} is {name}: {reason}" if wanted == "auto" else f"runtime.precision={name}")


def choose_precision(context: Context) -> tuple[str, str]:
    """The precision of the config on this machine, and the reason. Raises UserError where the machine cannot do it."""
    resolved = resolve_precision(context.config.runtime.precision, has_gpu())
    if not has_gpu():
        return resolved, "by trial on this CPU"
    capability = _dotted(torch.cuda.get_device_capability(context.local_rank))
    return resolved, f"capability {capability}, cuDNN {torch.backends.cudnn.version()}"


def _has_kernels(capability: tuple[int, int], known: list[str]) -> bool:
    """True where a kernel runs on the capability: same major version and at most its minor one, or PTX of an earlier one."""
    major, minor = capability
    for name in known:
        kind, _, digits = name.partition("_")
        number = digits.rstrip("af")
        if not number.isdecimal():
            continue
        of_major, of_minor = divmod(int(number), 10)
        if kind == "sm" and of_major == major and of_minor <= minor:
            return True
        if kind == "compute" and (of_major, of_minor) <= (major, minor):
            return True
    return False


def _gpus_of_driver() -> tuple[int, str]:
    """Number of GPUs and version of the driver, by nvidia-smi; 0 and nothing without it."""
    if shutil.which("nvidia-smi") is None:
        return 0, ""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return 0, ""
    lines = done.stdout.split()
    return len(lines), lines[0] if lines else ""


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
