"""Batches of a loader: one step's rows of one rank, as micro-batches.

A loader yields a list per step: the micro-batches that this rank computes, in order. Each has its weight in the global
batch, so the weighted sum of the mean losses over micro-batches and ranks is the mean loss of the global batch, however it
is divided.

Rows are divided by canonical ranks (`BatchShard`): as many as there are ranks, or more, of which each rank then computes
several. Floating-point sums depend on how they are divided, and training amplifies the difference. With the same canonical
ranks, other world sizes compute the same numbers from the same rows and add them in the same order
(`distributed/tree_reduce.py`). Trade-off: a rank runs at least one micro-batch per canonical rank.
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
"""Target of a position that has no loss (torch's `ignore_index`)."""


@dataclass(frozen=True)
class MicroBatch:
    """Rows of a global batch that are computed in one forward and backward pass.

    Attributes:
        x: token ids, int64 [rows, time].
        y: targets: next token ids, int64 [rows, time], or a classifier's targets, [rows] or [rows, classes].
        rows: indices of the rows in the global batch.
        global_rows: rows of the global batch.
        global_tokens: tokens of the global batch, without padding.
        documents: index of each row's document in the store, int64 [rows]; None where rows are a token stream.
        chunk_rows: rows that have tokens in each chunk of a batch of documents; None where rows are a token stream.
        has_labels: False for unlabelled documents, whose `y` is empty and whose rows follow those of the labelled ones.
    """

    x: torch.Tensor
    y: torch.Tensor
    rows: range
    global_rows: int
    global_tokens: int
    documents: np.ndarray | None = None
    chunk_rows: list[int] | None = None
    has_labels: bool = True

    @property
    def weight(self) -> float:
        """Fraction of the global batch's rows."""
        return len(self.rows) / self.global_rows

    def to(self, device: torch.device) -> MicroBatch:
        """Return a copy on a device; a copy to a GPU goes through pinned memory and does not block."""
        return replace(self, x=_copy_to(self.x, device), y=_copy_to(self.y, device))


def _copy_to(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class RankLoader(Protocol):
    """Loader of one rank, as fastai's `DataLoaders` takes it: the same number of steps on every rank.

    Attributes:
        shard: this rank's part of every global batch.
    """

    shard: BatchShard

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[MicroBatch]]: ...

    def from_step(self, first: int) -> Iterator[list[MicroBatch]]:
        """Yield the steps of the epoch from step `first` on, without reading the steps before it."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of documents; counted over all phases of the stage."""

    def set_shard(self, shard: BatchShard) -> None:
        """Divide the following steps into other micro-batches of the same rows."""

    def to(self, device: torch.device) -> None:
        """Do nothing: fastai calls this with the device, but micro-batches are moved by `data/prefetch.py`."""


@dataclass(frozen=True)
class BatchShard:
    """Part of every global batch that one rank computes.

    Attributes:
        canonical_ranks: indices of the canonical ranks that this rank computes.
        num_canonical_ranks: canonical ranks of all ranks together.
        micro_batch_size: maximum rows per forward pass; None for all rows of a canonical rank.
        exact: add gradients in an order that does not depend on the world size.
    """

    canonical_ranks: range = range(1)
    num_canonical_ranks: int = 1
    micro_batch_size: int | None = None
    exact: bool = False

    def check(self, global_batch_size: int, key: str) -> None:
        """Check that a global batch divides evenly. Raises UserError, naming the config key."""
        num = self.num_canonical_ranks
        if global_batch_size % num:
            below = global_batch_size // num * num
            near = " or ".join(str(n) for n in (below, below + num) if n)
            ranks = "ranks" if len(self.canonical_ranks) == 1 else "canonical ranks"
            raise UserError(f"{key}={global_batch_size} cannot be shared evenly by {num} {ranks}: make it {near}")

    def in_steps(self, steps: Named[int] | None, global_batch_size: int, key: str) -> BatchShard:
        """Return this shard with the micro-batch size that gives the launcher's number of accumulation steps.

        Args:
            steps: accumulation steps set by the launcher; None leaves the shard unchanged.
            key: config key of the global batch size, for messages.

        Raises:
            UserError: the rows of a rank, or its canonical ranks, are not divisible by the steps.
        """
        if steps is None or global_batch_size % self.num_canonical_ranks:  # `check` raises for the latter
            return self
        num_local = len(self.canonical_ranks)
        rows = global_batch_size // self.num_canonical_ranks
        if steps.value == num_local:
            return self
        if steps.value % num_local or rows % (steps.value // num_local):
            possible = ", ".join(str(num_local * count) for count in range(1, rows + 1) if rows % count == 0)
            ranks = f" as {num_local} canonical ranks (runtime.canonical_ranks)" if num_local > 1 else ""
            raise UserError(
                f"{steps.source}: a rank computes {rows * num_local} rows of {key}={global_batch_size}{ranks}, which cannot "
                f"be cut into {steps.value} equal micro-batches: use one of {possible}"
            )
        size = rows * num_local // steps.value
        return replace(self, micro_batch_size=min(size, self.micro_batch_size or size))

    def cut(self, rows: range, global_rows: int) -> list[range]:
        """Return a canonical rank's rows as micro-batches of similar size, in order, none empty.

        All ranks get the same number of micro-batches. Where ranks have different numbers of rows, a micro-batch may have
        one row more than `micro_batch_size`.
        """
        num_pieces = self.num_pieces(global_rows)
        return [rows[i * len(rows) // num_pieces : (i + 1) * len(rows) // num_pieces] for i in range(num_pieces)]

    def num_pieces(self, global_rows: int) -> int:
        """Return the micro-batches of each canonical rank in a step."""
        fewest, most = global_rows // self.num_canonical_ranks, self._max_rows(global_rows)
        return max(1, min(fewest, -(-most // (self.micro_batch_size or most))))

    def rows_at_once(self, global_rows: int) -> int:
        """Return the rows of the largest micro-batch in a step."""
        return -(-self._max_rows(global_rows) // self.num_pieces(global_rows))

    def halved(self, global_rows: int) -> int | None:
        """Return the micro-batch size that halves the largest micro-batch; None if it cannot be smaller."""
        smaller = -(-self.rows_at_once(global_rows) // 2)
        is_smaller = replace(self, micro_batch_size=smaller).num_pieces(global_rows) > self.num_pieces(global_rows)
        return smaller if is_smaller else None

    def _max_rows(self, global_rows: int) -> int:
        return -(-global_rows // self.num_canonical_ranks)


@dataclass(frozen=True)
class BatchLayout:
    """Layout of a loader's batches.

    Attributes:
        global_batch_size: rows (language model) or documents (classifier) of a step, over all ranks.
        seq_len: tokens of a row per step (language model), or per chunk of padding (classifier).
        shard: this rank's part of every global batch.
        backwards: read each document from its end.
    """

    global_batch_size: int
    seq_len: int
    shard: BatchShard
    backwards: bool = False


def make_batch_shard(rank: int, world_size: int, settings: RuntimeConfig, at_most: int | None = None) -> BatchShard:
    """Return a rank's shard: one canonical rank, or `runtime.canonical_ranks` divided by the world size if that is even.

    Args:
        at_most: largest micro-batch size that fits in memory; None for no limit.
    """
    canonical = settings.canonical_ranks or 0
    exact = canonical > 0 and canonical % world_size == 0
    num_canonical_ranks = canonical if exact else world_size
    num_local = num_canonical_ranks // world_size
    micro_batch_size = min((size for size in (settings.micro_batch_size, at_most) if size is not None), default=None)
    local = range(rank * num_local, (rank + 1) * num_local)
    return BatchShard(local, num_canonical_ranks, micro_batch_size, exact)
