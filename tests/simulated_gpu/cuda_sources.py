"""CUDA sources of the package on the simulated GPU: compiled for the CPU (`tests/cuda_on_cpu.py`), one kernel per launch."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from simulated_gpu import native
from simulated_gpu.counters import COUNTERS
from simulated_gpu.tensor import inner_of

FLAGS = ("-std=c++20", "-O2", "-mf16c", "-ffp-contract=off", "-shared", "-fPIC", "-pthread")


def install(module: Any) -> None:
    """Replace `compile_source` in `ulmfit_dist.cuda.compile`, right after its import."""
    module.compile_source = compile_source


def compile_source(name: str, *options: str) -> Callable[[int, list[Any]], None]:
    """Compile a source like `ulmfit_dist.cuda.compile.compile_source`, for tensors of the simulated GPU."""
    import cuda_on_cpu

    threads = 1 if name == "softmax_gradient" else cuda_on_cpu.THREADS[name]  # threads that wait for each other are slow
    folder = native.PACKAGE / "cuda"
    text = cuda_on_cpu.CUDA + (folder / f"{name}.cu").read_text() + cuda_on_cpu.RUN[name]
    run = ctypes.CDLL(str(_compiled(name, text, [*FLAGS, f"-DTHREADS={threads}", *options]))).run

    def launch(num_blocks: int, arguments: list[Any]) -> None:
        COUNTERS.launch(name, sum(x.nbytes for x in arguments if isinstance(x, Tensor)))
        run(num_blocks, *(cuda_on_cpu._to_c(argument) for argument in inner_of(arguments)))

    return launch


def _compiled(name: str, text: str, flags: list[str]) -> Path:
    key = hashlib.sha256(f"{flags}\n{text}".encode()).hexdigest()[:16]
    library = native.cache_folder() / f"{name}-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            source, made = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
            source.write_text(text)
            subprocess.run(["g++", *flags, str(source), "-o", str(made)], check=True)
            os.replace(made, library)
    return library
