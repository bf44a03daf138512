"""What a loader yields: one step's share of one rank, as micro-batches.

An item of a loader is a list: the micro-batches that this rank computes in one step, one after the other. Each knows the
size of the global batch, and so its weight in it: the weighted sum of mean losses over micro-batches and ranks is the mean
loss of the global batch, whatever the cut.

The cut follows the virtual ranks (`BatchShard`): as many as there are ranks, or more, of which each rank then computes
several. Sums that are cut differently round differently, and training makes much of little; the same virtual ranks on other
numbers of real ones compute the same numbers from the same rows, and add them up in the same order
(`distributed/tree_reduce.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed.launch_settings import Named
from ulmfit_dist.errors import UserError

IGNORED = -100
"""Target of a position that is not to be predicted (torch's `ignore_index`)."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a global batch that are computed at once.

    Attributes:
        x: token ids, int64 [rows, time].
        y: what to predict: next token ids, int64 [rows, time], or a classifier's targets, [rows] or [rows, classes].
        rows: their numbers in the global batch.
        global_rows: rows of the global batch.
        global_tokens: tokens of the global batch, without padding.
        documents: which documents of the store the rows are, int64 [rows]; None where a row is no document.
        chunk_rows: by how many rows each chunk of a batch of documents is read; None where rows are a stream.
    """

    x: torch.Tensor
    y: torch.Tensor
    rows: range
    global_rows: int
    global_tokens: int
    documents: np.ndarray | None = None
    chunk_rows: list[int] | None = None

    @property
    def weight(self) -> float:
        """The share of these rows in the global batch."""
        return len(self.rows) / self.global_rows

    def to(self, device: torch.device) -> MicroBatch:
        """The same on a device; to a GPU by way of pinned memory, so that nothing waits for the copy."""
        return replace(self, x=_moved(self.x, device), y=_moved(self.y, device))


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class RankLoader(Protocol):
    """A loader as fastai's `DataLoaders` takes it: the same number of steps on every rank.

    Attributes:
        share: what of every global batch is this rank's.
    """

    share: BatchShard

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[MicroBatch]]: ...

    def from_step(self, first: int) -> Iterator[list[MicroBatch]]:
        """The steps of the epoch from one on: nothing before it is read."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epoch: counted over all phases of the stage."""

    def set_share(self, share: BatchShard) -> None:
        """Cut the steps from here on into other micro-batches of the same rows."""

    def to(self, device: torch.device) -> None:
        """fastai announces the device here; micro-batches are moved one step ahead (`data/prefetch.py`)."""


@dataclass(frozen=True)
class BatchShard:
    """What a rank computes of every global batch.

    Attributes:
        canonical_ranks: numbers of the virtual ranks that this rank stands for.
        num_canonical_ranks: of how many.
        micro_batch_size: rows that are computed at once, at most; None for all of a virtual rank's.
        exact: whether gradients are to be added up in an order that does not depend on the number of ranks.
    """

    canonical_ranks: range = range(1)
    num_canonical_ranks: int = 1
    micro_batch_size: int | None = None
    exact: bool = False

    def check(self, global_batch_size: int, key: str) -> None:
        """Raise UserError, naming the key, where a global batch cannot be shared evenly."""
        num = self.num_canonical_ranks
        if global_batch_size % num:
            below = global_batch_size // num * num
            near = " or ".join(str(n) for n in (below, below + num) if n)
            ranks = "ranks" if len(self.canonical_ranks) == 1 else "virtual ranks"
            raise UserError(f"{key}={global_batch_size} cannot be shared evenly by {num} {ranks}: make it {near}")

    def in_steps(self, steps: Named[int] | None, global_batch_size: int, key: str) -> BatchShard:
        """This share with the micro-batch size at which a rank computes its rows of a global batch in so many micro-batches.

        Args:
            steps: accumulation steps that the launcher names; None leaves the share as it is.
            key: config key of the global batch size, for messages.

        Raises:
            UserError: the rows of a rank, or its virtual ranks, cannot be divided by the steps.
        """
        if steps is None or global_batch_size % self.num_canonical_ranks:  # which `check` refuses
            return self
        each, rows = len(self.canonical_ranks), global_batch_size // self.num_canonical_ranks
        if steps.value == each:
            return self
        if steps.value % each or rows % (steps.value // each):
            possible = ", ".join(str(each * count) for count in range(1, rows + 1) if rows % count == 0)
            ranks = f" as {each} virtual ranks (runtime.canonical_ranks)" if each > 1 else ""
            raise UserError(
                f"{steps.source}: a rank computes {rows * each} rows of {key}={global_batch_size}{ranks}, which cannot be "
                f"cut into {steps.value} equal micro-batches: use one of {possible}"
            )
        size = rows * each // steps.value
        return replace(self, micro_batch_size=min(size, self.micro_batch_size or size))

    def cut(self, rows: range, global_rows: int) -> list[range]:
        """A virtual rank's rows as micro-batches of like size, in order: as many on each, none of them empty.

        So where ranks own unlike numbers of rows, a micro-batch may have one more than was asked for.
        """
        num_pieces = self.num_pieces(global_rows)
        return [rows[i * len(rows) // num_pieces : (i + 1) * len(rows) // num_pieces] for i in range(num_pieces)]

    def num_pieces(self, global_rows: int) -> int:
        """Micro-batches of each virtual rank in a step."""
        fewest, most = global_rows // self.num_canonical_ranks, self._most_rows(global_rows)
        return max(1, min(fewest, -(-most // (self.micro_batch_size or most))))

    def rows_at_once(self, global_rows: int) -> int:
        """Rows of the largest micro-batch in a step."""
        return -(-self._most_rows(global_rows) // self.num_pieces(global_rows))

    def halved(self, global_rows: int) -> int | None:
        """A micro-batch size of half the rows at once; None where they cannot be made fewer."""
        smaller = -(-self.rows_at_once(global_rows) // 2)
        is_smaller = replace(self, micro_batch_size=smaller).num_pieces(global_rows) > self.num_pieces(global_rows)
        return smaller if is_smaller else None

    def _most_rows(self, global_rows: int) -> int:
        return -(-global_rows // self.num_canonical_ranks)


def make_batch_shard(rank: int, world_size: int, settings: RuntimeConfig, at_most: int | None = None) -> BatchShard:
    """A rank's share: it stands for itself alone, or for as many virtual ranks as come out even.

    Args:
        at_most: micro-batch size that the memory has room for; None where there is no such limit.
    """
    wanted = settings.canonical_ranks or 0
    exact = wanted > 0 and wanted % world_size == 0
    num_canonical_ranks = wanted if exact else world_size
    each = num_canonical_ranks // world_size
    micro_batch_size = min((size for size in (settings.micro_batch_size, at_most) if size is not None), default=None)
    return BatchShard(range(rank * each, (rank + 1) * each), num_canonical_ranks, micro_batch_size, exact)
