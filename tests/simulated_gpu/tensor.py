"""Tensor of the simulated GPU, and CUDA's rules for operations on such tensors.

A `SimulatedTensor` has the device `cuda:N`, and holds a tensor in CPU memory. Operations on it are routed to `dispatch`,
like those of torch's dispatch key CUDA that create tensors (`install_fallback`). It checks CUDA's rules, counts, and
computes on the tensors in CPU memory. The trade-off: results are those of CPU kernels, so rounding differs from that of a
GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simulated_gpu.counters import COUNTERS, MEMORY, calling_line
from simulated_gpu.kernels import COMPUTED, NO_KERNEL, WAITING, traffic

aten = torch.ops.aten
CPU = torch.device("cpu")
COPIES = {aten._to_copy.default, aten.copy_.default, aten._pin_memory.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}

Namespace = Callable[[Any, tuple, dict], Any]
NAMESPACES: dict[str, Namespace] = {}
"""Implementations of operations by namespace; `collectives.py` sets that of c10d."""


class SimulatedTensor(torch.Tensor):
    """Tensor on `cuda:N`.

    Attributes:
        inner: its data, in CPU memory.
        allocation: its allocation in device memory.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls: type[SimulatedTensor], inner: Tensor, device: torch.device) -> SimulatedTensor:
        assert type(inner) is Tensor, type(inner)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=device,
        )
        made.inner, made.allocation = inner, MEMORY.allocation_of(inner)
        return made

    def __repr__(self) -> str:
        return f"SimulatedTensor({self.inner!r}, device='{self.device}')"

    @property
    def data(self) -> Tensor:
        return torch._C.TensorBase.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        torch._C.TensorBase.data.__set__(self, value)  # refuses a tensor in CPU memory
        assert isinstance(value, SimulatedTensor)
        self.inner, self.allocation = value.inner, value.allocation

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(func, args, kwargs or {})


@dataclass(frozen=True)
class Signature:
    """Properties of an operation that `dispatch` uses.

    Attributes:
        name: without namespace and overload.
        returned: for each result the argument that it is, by position and name, or None for a new tensor.
    """

    name: str
    returned: tuple[tuple[int, str] | None, ...]


@functools.cache
def signature(func: Any) -> Signature:
    schema = func._schema
    written = {
        frozenset(argument.alias_info.before_set): (position, argument.name)
        for position, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    }
    results = [frozenset(r.alias_info.before_set) if r.alias_info is not None else None for r in schema.returns]
    return Signature(func.overloadpacket.__name__, tuple(written.get(r) if r is not None else None for r in results))


def install_fallback() -> torch.library.Library:
    """Route operations with dispatch key CUDA to `dispatch`, for the lifetime of the returned object."""
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: dispatch(func, args, kwargs), "CUDA")
    return library


def dispatch(func: Any, args: tuple, kwargs: dict) -> Any:
    """Compute an operation with tensors on the simulated GPU."""
    tensors: list[Tensor] = []
    inner_args, inner_kwargs = _inner(args, tensors), _inner(kwargs, tensors)
    on_gpu = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor)]
    if func.namespace in NAMESPACES:
        return NAMESPACES[func.namespace](func, args, kwargs)
    this = signature(func)
    target = _target(kwargs, on_gpu)
    _check_devices(func, this, args, on_gpu, on_cpu)
    _count_waits(func, this, args, kwargs, on_gpu, on_cpu, target)
    if kwargs.get("device") is not None:
        inner_kwargs["device"] = CPU
    if kwargs.get("pin_memory"):
        inner_kwargs["pin_memory"] = False
    compute = COMPUTED.get(func, func)
    results = compute(*inner_args, **inner_kwargs)
    if this.name not in NO_KERNEL:
        COUNTERS.launch(this.name, traffic(this.name, inner_args, inner_kwargs, results))
    return _wrapped(this, args, kwargs, results, target)


def _inner(value: Any, tensors: list[Tensor]) -> Any:
    """Return arguments with tensors in CPU memory instead of simulated ones, and add all tensors to a list."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return value.inner if isinstance(value, SimulatedTensor) else value
    if isinstance(value, dict):
        return {key: _inner(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_inner(item, tensors) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def inner_of(value: Any) -> Any:
    return _inner(value, [])


def current_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def _target(kwargs: dict, on_gpu: list[SimulatedTensor]) -> torch.device:
    """Return the device of the results."""
    if kwargs.get("device") is not None:
        device = torch.device(kwargs["device"])
        return current_device() if device.type == "cuda" and device.index is None else device
    return on_gpu[0].device if on_gpu else current_device()


def _check_devices(func: Any, this: Signature, args: tuple, on_gpu: list[SimulatedTensor], on_cpu: list[Tensor]) -> None:
    if func in COPIES or not on_gpu:
        return
    if any(tensor.device != on_gpu[0].device for tensor in on_gpu):
        devices = sorted({str(tensor.device) for tensor in on_gpu})
        raise RuntimeError(f"{func}: tensors on {' and '.join(devices)} at {calling_line()}")
    refused = [tensor for tensor in on_cpu if tensor.dim()]
    if func in INDEXING:
        refused = [tensor for tensor in refused if tensor is args[0]]
    if refused:
        shapes = [tuple(tensor.shape) for tensor in refused]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {on_gpu[0].device} and cpu: "
            f"{func} of CPU tensors of shape {shapes} at {calling_line()}"
        )


def _count_waits(
    func: Any, this: Signature, args: tuple, kwargs: dict, on_gpu: list, on_cpu: list[Tensor], target: torch.device
) -> None:
    if this.name in WAITING and on_gpu:
        COUNTERS.wait(WAITING[this.name])
    elif func in INDEXING:
        indices = [index for index in args[1] if isinstance(index, Tensor)]
        if any(not isinstance(index, SimulatedTensor) for index in indices):
            COUNTERS.wait("index on the CPU")
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            COUNTERS.wait("index by a mask")
    elif func is aten._to_copy.default and target.type == "cpu" and on_gpu:
        if not kwargs.get("non_blocking"):  # else the copy is to pinned memory
            COUNTERS.wait("copy to the CPU")
    elif func is aten._to_copy.default and on_cpu and target.type == "cuda":
        _count_upload(on_cpu[0], kwargs.get("non_blocking", False))
    elif func is aten.copy_.default and not isinstance(args[0], SimulatedTensor):
        COUNTERS.wait("copy to the CPU")
    elif func is aten.copy_.default and not isinstance(args[1], SimulatedTensor):
        _count_upload(args[1], args[2] if len(args) > 2 else kwargs.get("non_blocking", False))


def _count_upload(tensor: Tensor, non_blocking: bool) -> None:
    if not (non_blocking and getattr(tensor, "_is_pinned", False)):
        COUNTERS.wait("copy from memory that is not pinned" if non_blocking else "copy to the GPU")


def _wrapped(this: Signature, args: tuple, kwargs: dict, results: Any, target: torch.device) -> Any:
    """Return results as simulated tensors; a result that is an argument stays that argument."""
    if len(this.returned) == 1:
        return _wrapped_one(this, this.returned[0], args, kwargs, results, target)
    if not this.returned:
        return None
    pairs = zip(this.returned, results, strict=True)
    return tuple(_wrapped_one(this, source, args, kwargs, result, target) for source, result in pairs)


def _wrapped_one(
    this: Signature, source: tuple[int, str] | None, args: tuple, kwargs: dict, result: Any, target: torch.device
) -> Any:
    if source is not None:
        position, name = source
        given = kwargs[name] if name in kwargs else args[position]
        if isinstance(given, SimulatedTensor) and given.shape != given.inner.shape:
            _resize(given, this)
        return given
    if isinstance(result, (list, tuple)):
        return type(result)(_wrapped_one(this, None, args, kwargs, item, target) for item in result)
    if not isinstance(result, Tensor) or target.type == "cpu":
        return result
    return SimulatedTensor(result, target)


def _resize(tensor: SimulatedTensor, this: Signature) -> None:
    """Update the shape of a tensor whose data an operation has resized in place."""
    if not tensor.inner.is_contiguous():
        raise NotImplementedError(f"the simulated GPU cannot change the strides of a tensor in place: {this.name}")
    set_storage, inner = aten.set_.source_Storage_storage_offset, tensor.inner
    set_storage._op_dk(torch._C.DispatchKey.Meta, tensor, tensor.untyped_storage(), 0, inner.shape, inner.stride())
    tensor.allocation = MEMORY.allocation_of(tensor.inner)
