"""Counts of the simulated GPU: kernels, bytes, waits for the device, LSTM calls, memory.

A kernel is one call of an operation that launches work; cuDNN's LSTMs, which launch hundreds, count as LSTM calls only.
Bytes are the minimum that each operation reads and writes, without caches, and without LSTMs.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import Tensor

MOST_BEHIND = 20
"""Lag of the device behind the host, in kernels, unless the host waits: less than a training step."""

OWN_FOLDER = str(Path(__file__).parent)
BLAMED = ("/ulmfit_dist/", "/fastai/", "/torch/amp/", "/accelerate/")
"""Substrings of the paths of files to which a wait is attributed."""


@dataclass
class Counters:
    """Counts since the last `clear`.

    Attributes:
        kernels: number of launches, by operation.
        bytes: bytes read and written, by operation.
        waits: number of waits of the host for the device, by reason and source line.
        lstms: number of calls of cuDNN's LSTM.
        scattered: number of LSTM calls with non-contiguous weights.
        sync_mode: "default", "warn" or "error": effect of a wait (`torch.cuda.set_sync_debug_mode`).
        launched: number of kernels since the start of the process.
        finished: number of kernels that the device had finished at the last wait.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    lstms: int = 0
    scattered: int = 0
    sync_mode: str = "default"
    launched: int = 0
    finished: int = 0

    def clear(self) -> None:
        for counter in (self.kernels, self.bytes, self.waits):
            counter.clear()
        self.lstms = self.scattered = 0

    def wait(self, reason: str) -> None:
        """Count a wait for the device, and raise or warn according to the sync mode."""
        place = calling_line()
        if self.sync_mode == "error":
            raise RuntimeError(f"called a synchronizing CUDA operation: {reason} at {place}")
        if self.sync_mode == "warn":
            warnings.warn(f"called a synchronizing CUDA operation: {reason} at {place}", stacklevel=2)
        self.waits[f"{reason} at {place}"] += 1
        self.finished = self.launched

    def is_finished(self, number: int) -> bool:
        """Return whether the device has finished the first `kernels` kernels of the process."""
        return number <= max(self.finished, self.launched - MOST_BEHIND)

    def launch(self, name: str, num_bytes: int = 0) -> None:
        self.launched += 1
        self.kernels[name] += 1
        self.bytes[name] += num_bytes


@dataclass
class Memory:
    """Bytes of the storages that tensors on the simulated GPU hold.

    Attributes:
        allocated, peak: now, and at most since `reset_peak`.
        limit: above which an allocation raises `torch.OutOfMemoryError`.
    """

    allocated: int = 0
    peak: int = 0
    limit: int = 80 * 2**30
    storages: WeakValueDictionary[int, Allocation] = field(default_factory=WeakValueDictionary)

    def reset_peak(self) -> None:
        self.peak = self.allocated

    def allocation_of(self, tensor: Tensor) -> Allocation:
        """Return the allocation of a tensor in CPU memory; tensors of the same storage share it."""
        storage = tensor.untyped_storage()
        actual = self.storages.get(storage._cdata)
        if actual is None:
            actual = self.storages[storage._cdata] = Allocation(self, storage.nbytes())
        return actual


class Allocation:
    """Device memory of one storage, freed with the last tensor that holds it."""

    def __init__(self, memory: Memory, num_bytes: int):
        self.memory, self.num_bytes = memory, 0
        if memory.allocated + num_bytes > memory.limit:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {num_bytes / 2**20:.2f} MiB. "
                f"{memory.allocated / 2**20:.2f} MiB of {memory.limit / 2**20:.2f} MiB are allocated (simulated GPU)."
            )
        self.num_bytes = num_bytes
        memory.allocated += num_bytes
        memory.peak = max(memory.peak, memory.allocated)

    def __del__(self) -> None:
        self.memory.allocated -= self.num_bytes


COUNTERS, MEMORY = Counters(), Memory()
"""Memory of this process."""


def calling_line() -> str:
    """Return the innermost executing line of the package, fastai, Accelerate or torch's loss scaler."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(OWN_FOLDER) and any(part in path for part in BLAMED):
            names = Path(path).parts
            start = next(i for i, name in enumerate(names) if any(part.strip("/").split("/")[0] == name for part in BLAMED))
            return f"{'/'.join(names[start:])}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the package"


def bytes_of(tensor: Tensor) -> int:
    """Return the size of a tensor in memory, in bytes; an expanded dimension holds one element."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements * tensor.element_size()
