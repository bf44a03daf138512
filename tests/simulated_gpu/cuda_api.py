"""Simulated `torch.cuda`, and other functions of torch whose result depends on a GPU."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from torch import Tensor, nn

from simulated_gpu import collectives, cudnn, native
from simulated_gpu.counters import COUNTERS, MEMORY
from simulated_gpu.tensor import SimulatedTensor, inner_of, install_fallback

NAME, CAPABILITY, CUDNN_VERSION, NUM_MULTIPROCESSORS = "NVIDIA H100 (simulated)", (9, 0), 91_900, 132
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
SYNC_MODES = ("default", "warn", "error")

real_compile, real_to, real_save_model = torch.compile, nn.Module.to, safetensors.torch.save_model
real_tolist, real_tensor, real_new_tensor = torch.Tensor.tolist, torch.tensor, torch.Tensor.new_tensor
INSTALLED = ExitStack()


class Event:
    """Simulated `torch.cuda.Event`, which the device passes some kernels later. Its time is the host's at its recording."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.seconds: float | None = None
        self.number = 0

    def record(self, stream: Any = None) -> None:
        self.seconds, self.number = time.perf_counter(), COUNTERS.launched

    def query(self) -> bool:
        return COUNTERS.is_finished(self.number)

    def synchronize(self) -> None:
        if not self.query():
            COUNTERS.wait("event")

    def elapsed_time(self, other: Event) -> float:
        assert self.seconds is not None
        assert other.seconds is not None
        if not (self.query() and other.query()):
            raise RuntimeError("CUDA error: device not ready")
        return 1000 * (other.seconds - self.seconds)


def install() -> None:
    """Start the simulation in this process. Call `native.load()` before, and before torch is imported."""
    library = native.load()
    functions: dict[str, Any] = {
        **_devices(library),
        **_memory(),
        "torch.cuda.Event": Event,
        "torch.cuda.synchronize": lambda *args: COUNTERS.wait("synchronize"),
        "torch.cuda.set_sync_debug_mode": _set_sync_debug_mode,
        "torch.cuda.get_sync_debug_mode": lambda: SYNC_MODES.index(COUNTERS.sync_mode),
        "torch.cuda.manual_seed": lambda seed: None,  # random numbers are those of the CPU's generator
        "torch.cuda.manual_seed_all": lambda seed: None,
        "torch.backends.cudnn.version": lambda: CUDNN_VERSION,
        "torch.backends.cudnn.is_available": lambda: True,
        "torch._VF.lstm": cudnn.lstm,
        "torch.compile": compile_for_gpu,
        "torch.Tensor.pin_memory": _pin_memory,
        "torch.Tensor.is_pinned": lambda self, device=None: getattr(self, "_is_pinned", False),
        "torch.Tensor.tolist": _tolist,
        "torch.Tensor.new_tensor": _new_tensor,
        "torch.tensor": _tensor,
        "torch.nn.Module.to": _module_to,
        "safetensors.torch.save_model": _save_model,
    }
    for name, function in functions.items():
        INSTALLED.enter_context(patch(name, function))
    INSTALLED.callback(install_fallback()._destroy)
    collectives.install(INSTALLED)
    # Backward passes in the calling thread: coverage cannot follow those of autograd's own threads.
    torch.autograd.grad_mode.set_multithreading_enabled(False)


def _devices(library: Any) -> dict[str, Callable]:
    properties = SimpleNamespace(
        name=NAME, major=CAPABILITY[0], minor=CAPABILITY[1], multi_processor_count=NUM_MULTIPROCESSORS, uuid="simulated"
    )

    def get_device_properties(device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(**vars(properties), total_memory=MEMORY.limit)

    def set_device(device: Any) -> None:
        index = device if isinstance(device, int) else torch.device(device).index
        if index is not None:
            library.simulated_gpu_set_device(index)

    return {
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.init": lambda: None,
        "torch.cuda.is_initialized": lambda: True,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_bf16_supported": lambda *args, **kwargs: torch.cuda.get_device_capability()[0] >= 8,
        "torch.cuda.device_count": lambda: library.simulated_gpu_num_devices(),
        "torch.cuda.current_device": lambda: library.simulated_gpu_current_device(),
        "torch.cuda.set_device": set_device,
        "torch.cuda.get_device_capability": lambda *args: CAPABILITY,
        "torch.cuda.get_device_name": lambda *args: NAME,
        "torch.cuda.get_device_properties": get_device_properties,
        "torch.cuda.get_arch_list": lambda: list(ARCHITECTURES),
    }


def _memory() -> dict[str, Callable]:
    return {
        "torch.cuda.memory_allocated": lambda *args: MEMORY.allocated,
        "torch.cuda.memory_reserved": lambda *args: MEMORY.allocated,
        "torch.cuda.max_memory_allocated": lambda *args: MEMORY.peak,
        "torch.cuda.max_memory_reserved": lambda *args: MEMORY.peak,
        "torch.cuda.reset_peak_memory_stats": lambda *args: MEMORY.reset_peak(),
        "torch.cuda.mem_get_info": lambda *args: (MEMORY.limit - MEMORY.allocated, MEMORY.limit),
        "torch.cuda.empty_cache": lambda: None,
    }


def _set_sync_debug_mode(mode: int | str) -> None:
    COUNTERS.sync_mode = SYNC_MODES[mode] if isinstance(mode, int) else mode


def compile_for_gpu(function: Callable | None = None, **options: Any) -> Callable:
    """Simulated `torch.compile`: on the simulated GPU a compiled function is one kernel, computed without a compiler."""
    if function is None:
        return functools.partial(compile_for_gpu, **options)
    compiled: list[Callable] = []  # for CPU tensors, when they come

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        tensors: list[Tensor] = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        devices = {x.device for x in tensors if isinstance(x, SimulatedTensor)}
        if not devices:
            compiled[:] = compiled or [real_compile(function, **options)]
            return compiled[0](*args, **kwargs)
        results = function(*inner_of(args), **inner_of(kwargs))
        outputs = [x for x in torch.utils._pytree.tree_leaves(results) if isinstance(x, Tensor)]
        COUNTERS.launch(f"compiled.{function.__name__}", sum(x.nbytes for x in (*tensors, *outputs)))
        given = {id(x.inner): x for x in tensors if isinstance(x, SimulatedTensor)}

        def wrap(x: Tensor) -> Tensor:
            return given[id(x)] if id(x) in given else SimulatedTensor(x, min(devices, key=str))

        return torch.utils._pytree.tree_map_only(Tensor, wrap, results)

    return call


def _pin_memory(self: Tensor, device: Any = None) -> Tensor:
    pinned = self.clone()
    pinned._is_pinned = True  # type: ignore[attr-defined]
    return pinned


def _tolist(self: Tensor) -> Any:
    if not isinstance(self, SimulatedTensor):
        return real_tolist(self)
    COUNTERS.wait("numbers are read")
    return real_tolist(self.inner)


def _tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
    if device is None or torch.device(device).type != "cuda":
        return real_tensor(data, *args, device=device, **kwargs)
    requires_grad = kwargs.pop("requires_grad", False)
    return real_tensor(data, *args, **kwargs).to(device).requires_grad_(requires_grad)


def _new_tensor(self: Tensor, data: Any, *args: Any, **kwargs: Any) -> Tensor:
    if not isinstance(self, SimulatedTensor):
        return real_new_tensor(self, data, *args, **kwargs)
    return real_new_tensor(self.inner, data, *args, **kwargs).to(self.device)


def _module_to(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """Simulated `Module.to`, which changes parameters in place if the device changes, so that tied ones stay tied."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    tensors = [*self.parameters(), *self.buffers()]
    if device is None or all(tensor.device.type == device.type for tensor in tensors):
        return self if device is not None and device.type == "cuda" and dtype is None else real_to(self, *args, **kwargs)
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return real_to(self, *args, **kwargs)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def _save_model(model: nn.Module, filename: str, *args: Any, **kwargs: Any) -> None:
    """Simulated `safetensors.torch.save_model`, which reads storages that simulated tensors do not have."""
    state = inner_of(model.state_dict())
    real_save_model(SimpleNamespace(state_dict=lambda: state), filename, *args, **kwargs)
