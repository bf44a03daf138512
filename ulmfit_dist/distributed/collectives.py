"""Collectives over all ranks: sums, copies, objects, and errors that all ranks raise together.

Tensors on the device use the default process group; objects, votes and barriers the control group (`process_group.py`). On
one process each of them returns at once, with what it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from ulmfit_dist.errors import UserError, shared

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
    laps: StepTimer
    bytes_given: int
    _control: ProcessGroup | None

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            import torch.distributed

            torch.distributed.barrier(self._control)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over all ranks, on every rank."""
        if self.world_size == 1:
            return values
        self.bytes_given += values.nbytes
        with self.laps.exchange():
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
        with self.laps.exchange():  # every step votes: gloo itself, without the dispatcher and logging of `all_reduce`
            group._get_backend(highest.device).allreduce([highest], options).wait()
        return int(highest)

    def sum_by_pairs(self, values: torch.Tensor) -> torch.Tensor:
        """As `sum`, over a power of two of ranks, with the same bits as if fewer ranks had added up neighbours' values."""
        import torch.distributed as dist

        distance = 1
        while distance < self.world_size:
            partner, theirs = self.rank ^ distance, values.new_empty(values.shape)
            self.bytes_given += values.nbytes
            exchange = [dist.P2POp(dist.isend, values, partner), dist.P2POp(dist.irecv, theirs, partner)]
            with self.laps.exchange():
                for request in dist.batch_isend_irecv(exchange):
                    request.wait()
            values = values + theirs
            distance *= 2
        return values

    def copy_from_main(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give tensors rank 0's values, in place, on every rank."""
        if self.world_size > 1:
            import torch.distributed

            for tensor in tensors:
                torch.distributed.broadcast(tensor.data, src=0)

    def from_main(self, value: Value) -> Value:
        """Rank 0's value, on every rank: for what each might see differently, such as a file that comes and goes."""
        items = [value]
        if self.world_size > 1:
            import torch.distributed

            torch.distributed.broadcast_object_list(items, src=0, group=self._control)
        return items[0]

    @contextmanager
    def together(self) -> Iterator[None]:
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
        found = self.gather((type(error) is UserError, f"{error}", f"{type(error).__name__}: {error}") if error else None)
        for rank, report in enumerate(found):
            if report is not None:
                if error is not None and rank == self.rank:
                    raise shared(error)
                is_users, message, full = report
                raise shared(UserError(message) if is_users else RuntimeError(f"rank {rank} failed with {full}"))

    def gather(self, item: Value) -> list[Value]:
        """Every rank's value by rank, on every rank."""
        if self.world_size == 1:
            return [item]
        import torch.distributed

        items: list[Any] = [None] * self.world_size
        with self.laps.exchange():
            torch.distributed.all_gather_object(items, item, group=self._control)
        return items

    def tensors_from_main(self, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Rank 0's tensors, on every rank's own device; other ranks give None."""
        import torch

        spec = self.from_main({name: (t.shape, t.dtype) for name, t in tensors.items()} if tensors is not None else {})
        found = {}
        for name, (shape, dtype) in spec.items():
            given = None if tensors is None else tensors[name].to(self.device)
            found[name] = torch.empty(shape, dtype=dtype, device=self.device) if given is None else given
        self.copy_from_main(found.values())
        return found
