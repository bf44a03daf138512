"""What a loader yields: one step's share of one rank, as micro-batches.

An item of a loader is a list: the micro-batches that this rank computes in one step, one after the other. Each knows the
size of the global batch, and so its weight in it: the weighted sum of mean losses over micro-batches and ranks is the mean
loss of the global batch, whatever the cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ulmfit_dist.errors import UserError

IGNORED = -100
"""Target of a position that is not to be predicted (torch's `ignore_index`)."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a global batch that are computed at once.

    Attributes:
        x: token ids, int64 [rows, time].
        y: what to predict: next token ids, int64 [rows, time], or labels, int64 [rows].
        rows: their numbers in the global batch.
        global_rows: rows of the global batch.
        global_tokens: tokens of the global batch, without padding.
    """

    x: torch.Tensor
    y: torch.Tensor
    rows: range
    global_rows: int
    global_tokens: int

    @property
    def weight(self) -> float:
        """The share of these rows in the global batch."""
        return len(self.rows) / self.global_rows

    def to(self, device: torch.device) -> MicroBatch:
        return replace(self, x=self.x.to(device, non_blocking=True), y=self.y.to(device, non_blocking=True))


class Batches(Protocol):
    """A loader as fastai's `DataLoaders` takes it: the same number of steps on every rank."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[MicroBatch]]: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epoch: counted over all phases of the stage."""

    def to(self, device: torch.device) -> None:
        """fastai announces the device here; micro-batches are moved as they are used."""


def rows_of_rank(global_batch_size: int, rank: int, world_size: int, key: str) -> range:
    """The rows that a rank owns: `[r*B/W, (r+1)*B/W)`. Raises UserError where they do not come out even."""
    if global_batch_size % world_size:
        below = global_batch_size // world_size * world_size
        near = " or ".join(str(n) for n in (below, below + world_size) if n)
        raise UserError(f"{key}={global_batch_size} cannot be shared evenly by {world_size} ranks: make it {near}")
    size = global_batch_size // world_size
    return range(rank * size, (rank + 1) * size)


def cut_evenly(rows: range, num_pieces: int) -> Iterator[range]:
    """Rows in pieces of like size, in order."""
    for i in range(num_pieces):
        yield rows[i * len(rows) // num_pieces : (i + 1) * len(rows) // num_pieces]
