"""Copies of a device's tensors in the CPU's memory, launched now and read later.

`.item()`, `.tolist()` and `.cpu()` wait until a GPU has done all that was launched before them, and then the GPU waits for
new work. A copy to pinned memory is launched as a kernel is; when it is read some steps later, it was made long ago.
"""

from __future__ import annotations

from torch import Tensor, cuda


class HostCopy:
    """A tensor as it is now, on its way to the CPU.

    Args:
        tensor: on any device; what is written into it later does not change the copy.
    """

    def __init__(self, tensor: Tensor):
        self._event = None
        if tensor.is_cuda:
            self._values = tensor.to("cpu", non_blocking=True)  # to pinned memory, as torch does where it need not wait
            self._event = cuda.Event()
            self._event.record()
        else:
            self._values = tensor.clone()

    def read(self) -> list[float]:
        """The values; waits for the device only if it has not come to the copy yet."""
        if self._event is not None:
            self._event.synchronize()  # returns at once if the device has passed it
        return self._values.tolist()
