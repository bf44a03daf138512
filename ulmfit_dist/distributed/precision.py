"""Compute precision of a run: the value that `runtime.precision` resolves to on this machine.

Parameters and sums are fp32 in every mixed precision; only the dtype of matrix products differs. `auto` is a function of the
hardware, never a measurement: it resolves to the same value under any load.

* On a GPU: bf16 from compute capability 8.0, with a cuDNN that has bf16 LSTMs; else fp16 with loss scaling.
* On a CPU: bf16 with AMX, or with AVX512-BF16 on AMD; else fp32. An Intel CPU with AVX512-BF16 but without AMX computes bf16
  at half the speed of fp32. `ATEN_CPU_CAPABILITY` and `DNNL_MAX_CPU_ISA`, which disable instructions, count as hardware.

The trade-off: an unknown CPU computes in fp32, even if it has fast bf16. All ranks use a precision that every rank supports,
and a resumed run keeps the precision of its checkpoints.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import torch

from ulmfit_dist.distributed.collectives import Collectives
from ulmfit_dist.errors import UserError

FIRST_WITH_BF16_LSTMS = 91_300
"""First version of cuDNN whose bf16 LSTMs torch uses (pytorch issue 164411); older ones compute them step by step."""

BELOW_BF16 = ("sse41", "avx", "avx2", "avx2_vnni", "avx2_vnni_2", "avx512_core", "avx512_core_vnni")
"""Values of DNNL_MAX_CPU_ISA without bf16 instructions for matrix products, in lower case."""
BELOW_AMX = (*BELOW_BF16, "avx512_core_bf16", "avx512_core_fp16", "avx10_1_512")
"""Values of DNNL_MAX_CPU_ISA without AMX, in lower case."""


def resolve_precision(wanted: str, has_gpu: bool) -> str:
    """Return the value that `runtime.precision` resolves to: "fp32", "bf16", "fp16" or "fp64".

    Raises:
        UserError: if the device does not support the precision.
    """
    wanted = "fp32" if wanted == "no" else wanted  # Accelerate's name for fp32
    if wanted == "fp16" and not has_gpu:
        raise UserError("runtime.precision=fp16 needs a GPU, but none is visible: use bf16 or auto")
    if wanted == "fp64" and has_gpu:
        raise UserError("runtime.precision=fp64 is for CPUs only: use bf16, fp16 or auto on a GPU")
    if wanted == "bf16" and not has_gpu and not has_bf16_lstms():
        cause = f"DNNL_MAX_CPU_ISA={isa_limit()} disables it" if isa_limit() else "this CPU does not have it"
        raise UserError(f"runtime.precision=bf16 needs AVX-512 on a CPU, but {cause}: use fp32 or auto")
    return auto_precision(has_gpu)[0] if wanted == "auto" else wanted


def auto_precision(has_gpu: bool) -> tuple[str, str]:
    """Return the precision that `auto` selects on this machine, and the reason as a phrase."""
    if has_gpu:
        return gpu_precision(torch.cuda.get_device_capability(), torch.backends.cudnn.version() or 0)
    return cpu_precision(read_cpuinfo(), torch.cpu._init_amx(), torch.backends.cpu.get_cpu_capability(), isa_limit())


def has_bf16_lstms() -> bool:
    """Return whether this CPU computes LSTMs in bf16. On x86, oneDNN computes them, and needs AVX-512 for bf16."""
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def isa_limit() -> str:
    """Return the value of DNNL_MAX_CPU_ISA, or of its newer name, which oneDNN prefers; empty if neither is set."""
    return os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or ""


def gpu_precision(capability: tuple[int, int], cudnn: int) -> tuple[str, str]:
    """Return precision and reason for a GPU of this compute capability with this version of cuDNN."""
    name = f"compute capability {capability[0]}.{capability[1]}"
    if capability[0] < 8:
        return "fp16", f"{name} has no bf16"
    if cudnn < FIRST_WITH_BF16_LSTMS:
        return "fp16", f"cuDNN {cudnn} has no bf16 LSTMs: they need {FIRST_WITH_BF16_LSTMS}"
    return "bf16", f"{name}, cuDNN {cudnn}"


def cpu_precision(cpuinfo: str, amx_permitted: bool, aten_capability: str, max_isa: str) -> tuple[str, str]:
    """Return precision and reason for a CPU.

    Args:
        cpuinfo: the text of /proc/cpuinfo; empty if it does not exist.
        amx_permitted: whether the operating system lets this process use AMX.
        aten_capability: instructions that torch's own kernels use, which ATEN_CPU_CAPABILITY can limit.
        max_isa: the value of DNNL_MAX_CPU_ISA, which limits the instructions of oneDNN's kernels; empty if unset.
    """
    flags = set(_field("flags", cpuinfo).split())
    if not aten_capability.upper().startswith(("AVX512", "AMX")):
        return "fp32", f"torch's kernels use {aten_capability}, which has no bf16"
    if "amx_bf16" in flags and amx_permitted and max_isa.lower() not in BELOW_AMX:
        return "bf16", "the CPU has AMX"
    if _field("vendor_id", cpuinfo) != "AuthenticAMD":
        return "fp32", "the CPU has no usable AMX, and is not an AMD CPU"
    if "avx512_bf16" not in flags:
        return "fp32", "the CPU has no AVX512-BF16"
    if max_isa.lower() in BELOW_BF16:
        return "fp32", f"DNNL_MAX_CPU_ISA={max_isa} disables AVX512-BF16"
    return "bf16", "the CPU is an AMD CPU with AVX512-BF16"


def read_cpuinfo(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the text of /proc/cpuinfo, or an empty text if it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def common_precision(precisions: list[str]) -> str:
    """Return the precision for all ranks: the first of "fp32" and "fp16" that any rank needs, else the common one."""
    return next(precision for precision in ("fp32", "fp16", *precisions) if precision in precisions)


def agree_on_precision(ranks: Collectives, local: str, run_dir: Path | None, has_gpu: bool) -> str:
    """Return the precision of all ranks: that of the run's checkpoints, else the one that every rank supports. Collective.

    Args:
        local: the precision of this rank.
        run_dir: run directory whose checkpoints decide; None: ignore checkpoints.
    """
    common = common_precision(ranks.all_gather_object(local))
    earlier = ranks.broadcast_object(precision_of_run(run_dir) if run_dir is not None and ranks.rank == 0 else None)
    have_bf16 = all(ranks.all_gather_object(has_gpu or has_bf16_lstms()))
    supported = {"fp32": True, "bf16": have_bf16, "fp16": has_gpu}
    return earlier if earlier is not None and supported.get(earlier) else common


def precision_of_run(folder: Path) -> str | None:
    """Return the precision of the newest readable checkpoint in a run directory; None if there is none."""
    states = sorted(folder.glob("checkpoints/*/step-*/state.json"), key=_time, reverse=True)
    for path in states:
        try:
            return str(json.loads(path.read_bytes())["precision"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # resuming from it reports the damage
    return None


def check_compression(compression: str | None, precision: str, has_gpu: bool) -> None:
    """Check that the device supports a value of `runtime.gradient_compression`.

    Raises:
        UserError: if it is bf16 between CPUs, or fp16 with loss scaling.
    """
    if compression == "bf16" and not has_gpu:
        raise UserError("runtime.gradient_compression=bf16 needs GPUs: use fp16 or null between CPUs")
    if compression == "fp16" and precision == "fp16":
        raise UserError(
            "runtime.gradient_compression=fp16 overflows with runtime.precision=fp16, which scales the loss: "
            "set runtime.gradient_compression=bf16 or null"
        )


def _field(name: str, cpuinfo: str) -> str:
    """Return the value of a field for the first processor in the text of /proc/cpuinfo; empty if it is missing."""
    match = re.search(rf"^{name}\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return match[1].strip() if match else ""


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
