"""Process groups with NCCL's rules, computed by gloo.

A group with backend "nccl" accepts only contiguous tensors on the GPU, and sends Python objects as such tensors, which costs
copies and waits. A group "cpu:gloo,cuda:nccl" uses gloo for tensors in CPU memory and for objects.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from simulated_gpu.counters import COUNTERS, bytes_of, calling_line
from simulated_gpu.tensor import NAMESPACES, SimulatedTensor, inner_of

NCCL_ONLY: WeakSet[Any] = WeakSet()
"""Groups without a backend for tensors in CPU memory."""

CUDA_VERSION, NCCL_VERSION = "12.8", (2, 27, 3)

TENSOR_COLLECTIVES = (
    "all_gather all_gather_into_tensor all_reduce all_to_all_single broadcast gather irecv isend recv reduce reduce_scatter "
    "reduce_scatter_tensor scatter send".split()
)


def install(stack: ExitStack) -> None:
    """Patch torch.distributed until a stack is closed."""
    NAMESPACES["c10d"] = collective
    for name in ("init_process_group", "new_group"):
        _patch(stack, name, _with_gloo(getattr(distributed_c10d, name)))
    for name in TENSOR_COLLECTIVES:
        _patch(stack, name, _checked(name, getattr(distributed_c10d, name)))
    real_device = distributed_c10d._get_object_coll_device

    def object_device(group: Any = None) -> str:
        return "cuda" if _group(group) in NCCL_ONLY else real_device(group)

    stack.enter_context(patch.object(distributed_c10d, "_get_object_coll_device", object_device))
    checked = _with_nccl(DistributedDataParallel._check_comm_hook)
    stack.enter_context(patch.object(DistributedDataParallel, "_check_comm_hook", checked))


def _with_nccl(check: Callable) -> Callable:
    """Pass DDP's check of a communication hook, which requires CUDA and NCCL for gradients in bf16."""

    @functools.wraps(check)
    def wrapped(self: DistributedDataParallel, hook: Any) -> None:
        with (
            patch("torch.version.cuda", CUDA_VERSION),
            patch.object(dist, "is_nccl_available", lambda: True),
            patch("torch.cuda.nccl.version", lambda: NCCL_VERSION),
        ):
            check(self, hook)

    return wrapped


def _patch(stack: ExitStack, name: str, function: Callable) -> None:
    for module in (distributed_c10d, dist):
        stack.enter_context(patch.object(module, name, function))


def collective(func: Any, args: tuple, kwargs: dict) -> Any:
    """Compute an operation of the namespace c10d on tensors of the simulated GPU."""
    for tensor in tree_leaves((args, kwargs)):
        if isinstance(tensor, Tensor) and not isinstance(tensor, SimulatedTensor):
            raise RuntimeError(f"{func}: No backend type associated with device type cpu at {calling_line()}")
        if isinstance(tensor, SimulatedTensor) and not tensor.inner.is_contiguous():
            raise RuntimeError(f"{func}: Tensors must be contiguous at {calling_line()}")
    num_bytes = sum(bytes_of(tensor) for tensor in tree_leaves(args) if isinstance(tensor, Tensor))
    COUNTERS.launch(f"c10d.{func.overloadpacket.__name__}", num_bytes)
    results = func(*inner_of(args), **inner_of(kwargs))
    if isinstance(results, tuple) and results and isinstance(results[0], (list, tuple)):
        return args[0], *(_work_on(args[0], work) for work in results[1:])
    return results


def _work_on(tensors: Any, inner: Any) -> Any:
    """Return the work of an operation that writes to its first argument, with these tensors as its future's value."""

    def written(future: torch.futures.Future) -> Any:
        future.value()  # raises what has failed
        return tensors

    future = distributed_c10d.Work.unbox(inner).get_future().then(written)
    return torch._C._distributed_c10d._create_work_from_future(future).boxed()


def _with_gloo(function: Callable) -> Callable:
    """Return `init_process_group` or `new_group` with gloo instead of NCCL."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        backend = kwargs.get("backend") or next((item for item in _strings(args)), None)
        if backend is None and function.__name__ == "new_group":
            group = function(*args, **kwargs)
            if _group(None) in NCCL_ONLY:
                NCCL_ONLY.add(group)
            return group
        gloo = "cpu:gloo,cuda:gloo" if backend in (None, "nccl") else backend.replace("nccl", "gloo")
        kwargs.pop("device_id", None)
        if "backend" in kwargs or backend is None:
            kwargs["backend"] = gloo
        else:
            args = tuple(gloo if item is backend else item for item in args)
        group = function(*args, **kwargs)
        if backend == "nccl":
            NCCL_ONLY.add(_group(group))
        return group

    return wrapped


def _strings(args: tuple) -> Iterator[str]:
    return (item for item in args if isinstance(item, str))


def _checked(name: str, function: Callable) -> Callable:
    """Return a collective that refuses tensors in CPU memory if its group has only NCCL."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _group(kwargs.get("group")) in NCCL_ONLY:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor) and not isinstance(tensor, SimulatedTensor):
                    raise RuntimeError(f"{name}: No backend type associated with device type cpu at {calling_line()}")
        return function(*args, **kwargs)

    return wrapped


def _group(group: Any) -> Any:
    if group is not None:
        return group
    return dist.group.WORLD if dist.is_initialized() else None
