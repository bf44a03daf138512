"""The next step's micro-batches, on their way to the GPU while this step computes.

They are copied from pinned memory, which a GPU fetches by itself: nothing waits, neither the GPU for a loader nor the
loader for a GPU. No thread is needed, since a GPU's work is only queued: by the time that the next step is asked for, this
one has hardly begun. The price: one step more is held in memory. On a CPU there is nothing to gain, and nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ulmfit_dist.data.batches import MicroBatch


def prefetch_to_device(steps: Iterable[list[MicroBatch]], device: torch.device) -> Iterator[list[MicroBatch]]:
    """The same steps on the device, each yielded when the one after it has been sent there too."""
    if device.type == "cpu":
        yield from steps
        return
    sent: list[list[MicroBatch]] = []
    for step in steps:
        sent.append([batch.to(device) for batch in step])
        if len(sent) == 2:
            yield sent.pop(0)
    yield from sent
