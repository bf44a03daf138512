"""Asynchronous copies of device tensors to host memory.

`.item()`, `.tolist()` and `.cpu()` block until a GPU has finished all work launched before them, and leave it idle
afterwards. A copy to pinned memory is queued like a kernel, and is complete when it is read some steps later. The trade-off:
values are available with a delay.
"""

from __future__ import annotations

from torch import Tensor, cuda


class HostCopy:
    """Copy of a tensor's current values, on its way to the CPU.

    Args:
        tensor: tensor on any device; later writes to it do not change the copy.
    """

    def __init__(self, tensor: Tensor):
        self._event = None
        if tensor.is_cuda:
            self._values = tensor.to("cpu", non_blocking=True)  # torch allocates pinned memory for a non-blocking copy
            self._event = cuda.Event()
            self._event.record()
        else:
            self._values = tensor.clone()

    def read(self) -> list[float]:
        """Return the values; blocks only if the device has not reached the copy yet."""
        if self._event is not None:
            self._event.synchronize()  # returns at once if the device has passed it
        return self._values.tolist()
