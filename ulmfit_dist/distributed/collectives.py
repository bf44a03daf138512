"""Collectives over all ranks: sums, copies, objects, and errors that all ranks raise together.

Tensors on the device use the default process group; objects, votes and barriers the control group (`process_group.py`). On
one process each of them returns at once, with what it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ulmfit_dist.errors import UserError, mark_collective

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch.distributed import ProcessGroup

    from ulmfit_dist.distributed.step_timer import StepTimer

Value = TypeVar("Value")


class Collectives:
    """The collectives of one rank; `Runtime` gives them the attributes.

    Attributes:
        rank, world_size: this process and how many there are.
        device: the device of this rank.
        accelerator: reduces tensors.
        laps: the time that exchanges take is theirs.
        bytes_given: what this rank has given to sums over all ranks.
    """

    rank: int
    world_size: int
    device: torch.device
    accelerator: Accelerator
    step_timer: StepTimer
    bytes_given: int
    _control: ProcessGroup | None

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            import torch.distributed

            torch.distributed.barrier(self._control)

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all ranks, on every rank."""
        if self.world_size == 1:
            return values
        self.bytes_given += values.nbytes
        with self.step_timer.exchange():
            return self.accelerator.reduce(values, reduction="sum")

    def highest(self, value: int) -> int:
        """The highest of all ranks' values, exchanged over the CPU: no device is waited for."""
        if self.world_size == 1:
            return value
        import torch
        import torch.distributed as dist

        highest, options = torch.tensor(value), dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp(dist.ReduceOp.MAX)
        group: Any = self._control or dist.group.WORLD
        with self.step_timer.exchange():  # every step votes: gloo itself, without the dispatcher and logging of `all_reduce`
            group._get_backend(highest.device).allreduce([highest], options).wait()
        return int(highest)

    def tree_all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """As `sum`, over a power of two of ranks, with the same bits as if fewer ranks had added up neighbours' values."""
        import torch.distributed as dist

        distance = 1
        while distance < self.world_size:
            partner, theirs = self.rank ^ distance, values.new_empty(values.shape)
            self.bytes_given += values.nbytes
            exchange = [dist.P2POp(dist.isend, values, partner), dist.P2POp(dist.irecv, theirs, partner)]
            with self.step_timer.exchange():
                for request in dist.batch_isend_irecv(exchange):
                    request.wait()
            values = values + theirs
            distance *= 2
        return values

    def broadcast_in_place(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give tensors rank 0's values, in place, on every rank."""
        if self.world_size > 1:
            import torch.distributed

            for tensor in tensors:
                torch.distributed.broadcast(tensor.data, src=0)

    def broadcast_object(self, value: Value) -> Value:
        """Rank 0's value, on every rank: for what each might see differently, such as a file that comes and goes."""
        items = [value]
        if self.world_size > 1:
            import torch.distributed

            torch.distributed.broadcast_object_list(items, src=0, group=self._control)
        return items[0]

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Run a block on every rank, and leave it together: if one rank fails, all raise its error.

        Collective: every rank must pass through it, and the block itself must hold no other collective.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        if self.world_size == 1:
            if error is not None:
                raise error
            return
        found = self.all_gather_object(
            (type(error) is UserError, f"{error}", f"{type(error).__name__}: {error}") if error else None
        )
        for rank, report in enumerate(found):
            if report is not None:
                if error is not None and rank == self.rank:
                    raise mark_collective(error)
                is_users, message, full = report
                raise mark_collective(UserError(message) if is_users else RuntimeError(f"rank {rank} failed with {full}"))

    def all_gather_object(self, item: Value) -> list[Value]:
        """Every rank's value by rank, on every rank."""
        if self.world_size == 1:
            return [item]
        import torch.distributed

        items: list[Any] = [None] * self.world_size
        with self.step_timer.exchange():
            torch.distributed.all_gather_object(items, item, group=self._control)
        return items

    def broadcast_tensors(self, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Rank 0's tensors, on every rank's own device; other ranks give None."""
        import torch

        spec = self.broadcast_object(
            {name: (t.shape, t.dtype) for name, t in tensors.items()} if tensors is not None else {}
        )
        found = {}
        for name, (shape, dtype) in spec.items():
            given = None if tensors is None else tensors[name].to(self.device)
            found[name] = torch.empty(shape, dtype=dtype, device=self.device) if given is None else given
        self.broadcast_in_place(found.values())
        return found
