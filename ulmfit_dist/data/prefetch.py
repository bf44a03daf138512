"""Prefetching: copies the next step's micro-batches to the GPU while this step computes.

Copies are asynchronous, from pinned memory, so neither the GPU nor the loader waits. A thread is not needed: CUDA work is
queued, and the loader runs ahead of the GPU. Trade-off: one more step is held in GPU memory. On a CPU this does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from ulmfit_dist.data.batches import MicroBatch


def prefetch_to_device(steps: Iterable[list[MicroBatch]], device: torch.device) -> Iterator[list[MicroBatch]]:
    """Yield the steps on a device, each after the copy of the next one has been queued."""
    if device.type == "cpu":
        yield from steps
        return
    queued: list[list[MicroBatch]] = []
    for step in steps:
        queued.append([batch.to(device) for batch in step])
        if len(queued) == 2:
            yield queued.pop(0)
    yield from queued
