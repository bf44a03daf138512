"""Run-time compilation of kernels: CUDA source with NVRTC, or a function with `torch.compile`.

NVRTC is a library that torch's CUDA wheels install. It needs no compiler, no headers and no worker processes, and takes a
fraction of a second. `torch.compile` needs gcc, Python's headers and many seconds; it is the first fallback. Eager torch
operations are the second one, and always emit a warning.

The trade-off: the sources are written for NVIDIA GPUs, and loaded by private functions of torch (`torch.cuda._utils`). If
one of them is missing, the first fallback applies.
"""

from __future__ import annotations

import ctypes
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

THREADS = 512
"""Threads per block, in all kernels."""

NEEDED = "Install gcc and Python's headers: python3-dev (Debian, Ubuntu) or python3-devel (Fedora, RHEL)"
"""Advice if a kernel runs as eager torch operations."""

messages: list[str] = []
"""Compiler and seconds of each kernel, or the reason for a fallback: lines for `--verbose`."""


class CompilationError(Exception):
    """A kernel cannot be compiled on this machine."""


def try_compilers(name: str, *choices: tuple[str, Callable[[], Kernel]]) -> Kernel | None:
    """Return the first kernel that can be compiled, or None; `messages` records the compiler and the failures.

    Args:
        name: purpose of the kernel, in plural, for messages.
        choices: name of a compiler, and a function that compiles and tries the kernel; an exception selects the next one.
    """
    for compiler, compile_kernel in choices:
        started = time.perf_counter()
        try:
            kernel = compile_kernel()
        except Exception as error:  # compilers fail in many ways
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            messages.append(f"{name}: {compiler} failed: {reason}")
            continue
        messages.append(f"{name}: compiled by {compiler} in {time.perf_counter() - started:.1f} s")
        return kernel
    return None


def warn_of_slow(name: str) -> None:
    """Warn that a kernel could not be compiled, with the reasons and the packages to install."""
    reasons = [message for message in messages if message.startswith(f"{name}: ")]
    warnings.warn(f"{name} are slow on this machine. {'; '.join(reasons)}. {NEEDED}", stacklevel=3)


def compile_source(name: str, *options: str) -> Callable[[int, list[Any]], None]:
    """Compile `<name>.cu`, which defines a kernel of this name, for the current GPU.

    Returns:
        A function that launches it, given the number of blocks of `THREADS` threads and the kernel's arguments. An int is
        passed as a C int, a float as a double, a tensor as its address.
    """
    from torch.cuda import _utils

    nvrtc = _load_nvrtc()
    major, minor = torch.cuda.get_device_capability()
    source = Path(__file__).with_name(f"{name}.cu").read_bytes()
    flags = [f"--gpu-architecture=sm_{major}{minor}", f"-DTHREADS={THREADS}", *options]
    kernel = getattr(_utils._cuda_load_module(to_cubin(nvrtc, source, flags)), name)

    def launch(num_blocks: int, arguments: list[Any]) -> None:
        kernel(grid=(num_blocks, 1, 1), block=(THREADS, 1, 1), args=arguments)

    return launch


def to_cubin(nvrtc: ctypes.CDLL, source: bytes, options: Sequence[str]) -> bytes:
    """Compile CUDA source to machine code with NVRTC's C functions. Raises CompilationError with the compiler's log."""
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    status = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernel.cu", 0, None, None)
    if status:
        raise CompilationError(f"nvrtcCreateProgram failed with status {status}")
    try:
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), arguments):
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise CompilationError(log.value.decode(errors="replace"))
        status = nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        if status or nvrtc.nvrtcGetCUBIN(program, cubin):
            raise CompilationError("NVRTC returned no machine code for this GPU")
        return cubin.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _load_nvrtc() -> ctypes.CDLL:
    """Load the NVRTC that torch was built with. Torch's own library links to it, even if it is not on a search path."""
    from torch.cuda import _utils

    wrapper = Path(torch.__file__).parent / "lib" / "libcaffe2_nvrtc.so"
    with suppress(OSError):  # missing, or built without NVRTC: fall back to the search path
        ctypes.CDLL(str(wrapper))
    try:
        return _utils._get_nvrtc_library()
    except AttributeError:  # torch.version.cuda is None
        raise CompilationError("torch was installed without CUDA") from None


def compile_function(function: Kernel, arguments: Sequence[Any]) -> Kernel:
    """Compile a function of tensors for all sizes with `torch.compile`, and call it once.

    Args:
        arguments: example arguments. Sizes that may differ in use must differ here, and be neither 0 nor 1: sizes that are
            equal in the first call are specialized as equal, and another call would compile again.
    """
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # else each rank starts up to 32 worker processes for one small kernel
    compiled = cast(Kernel, torch.compile(function, dynamic=True))
    compiled(*arguments)
    return compiled
