"""NVRTC and the loading of kernels for the simulated GPU: the package's CUDA sources, compiled for the CPU by g++."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from typing import Any

import torch

from simulated_gpu.counters import COUNTERS, bytes_of
from simulated_gpu.tensor import SimulatedTensor


class Nvrtc:
    """The functions of libnvrtc that `ulmfit_dist/cuda/compile.py` calls; "machine code" is the options."""

    def __init__(self) -> None:
        self.options: list[str] = []

    def nvrtcCreateProgram(self, program: Any, source: bytes, *rest: Any) -> int:  # noqa: N802
        return 0

    def nvrtcCompileProgram(self, program: Any, number: int, options: Any) -> int:  # noqa: N802
        self.options = [option.decode() for option in options[:number] if option.startswith(b"-DLOGITS")]
        return 0

    def nvrtcGetCUBINSize(self, program: Any, size: Any) -> int:  # noqa: N802
        size._obj.value = len(self._cubin())
        return 0

    def nvrtcGetCUBIN(self, program: Any, cubin: Any) -> int:  # noqa: N802
        ctypes.memmove(cubin, self._cubin(), len(self._cubin()))
        return 0

    def nvrtcDestroyProgram(self, program: Any) -> int:  # noqa: N802
        return 0

    def _cubin(self) -> bytes:
        return json.dumps(self.options).encode()


class Module:
    """A loaded module: its attributes are kernels."""

    def __init__(self, cubin: bytes):
        self._options = json.loads(cubin)

    def __getattr__(self, name: str) -> Callable[..., None]:
        import cuda_on_cpu

        run = cuda_on_cpu.compile_source(name, *self._options)

        def launch(grid: tuple[int, int, int], block: tuple[int, int, int], args: list[Any]) -> None:
            tensors = [x for x in args if isinstance(x, torch.Tensor)]
            if not all(isinstance(x, SimulatedTensor) for x in tensors):
                raise ValueError("All tensor arguments must be CUDA tensors or pinned CPU tensors")
            in_place = [tensors[0]] if name == "softmax_gradient" else []  # read and written
            COUNTERS.launch(name, sum(map(bytes_of, (*tensors, *in_place))))
            run(grid[0], [x.inner if isinstance(x, SimulatedTensor) else x for x in args])

        return launch
