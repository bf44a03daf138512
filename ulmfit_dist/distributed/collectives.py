"""Collectives over all ranks: sums, copies, objects, and errors that all ranks raise together.

Tensors on the device use the default process group; objects, votes and barriers use the control group (`process_group.py`).
With one process, each collective returns its input at once.
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
    """Collectives of one rank; `Runtime` sets the attributes.

    Attributes:
        rank, world_size: index of this process, and number of processes.
        device: the device of this rank.
        accelerator: reduces tensors.
        step_timer: counts the time of exchanges as communication.
        bytes_given: bytes that this rank has contributed to sums over all ranks.
    """

    rank: int
    world_size: int
    device: torch.device
    accelerator: Accelerator
    step_timer: StepTimer
    bytes_given: int
    _control: ProcessGroup | None

    def barrier(self) -> None:
        """Wait until every rank reaches this call."""
        if self.world_size > 1:
            import torch.distributed

            torch.distributed.barrier(self._control)

    def all_reduce_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all ranks, on every rank."""
        if self.world_size == 1:
            return values
        self.bytes_given += values.nbytes
        with self.step_timer.exchange():
            total: torch.Tensor = self.accelerator.reduce(values, reduction="sum")
            return total

    def highest(self, value: int) -> int:
        """Return the highest value of all ranks. It is exchanged between CPUs, without waiting for a device."""
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
        """Return the sum over a power of two of ranks, bitwise equal to the sum in which fewer ranks add pairs locally."""
        import torch.distributed as dist

        distance = 1
        while distance < self.world_size:
            partner, remote = self.rank ^ distance, values.new_empty(values.shape)
            self.bytes_given += values.nbytes
            exchange = [dist.P2POp(dist.isend, values, partner), dist.P2POp(dist.irecv, remote, partner)]
            with self.step_timer.exchange():
                for request in dist.batch_isend_irecv(exchange):
                    request.wait()
            values = values + remote
            distance *= 2
        return values

    def broadcast_in_place(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with rank 0's values, on every rank."""
        if self.world_size > 1:
            import torch.distributed

            for tensor in tensors:
                torch.distributed.broadcast(tensor.data, src=0)

    def broadcast_object(self, value: Value) -> Value:
        """Return rank 0's value on every rank: for state that ranks may see differently, such as the files of a folder."""
        items = [value]
        if self.world_size > 1:
            import torch.distributed

            torch.distributed.broadcast_object_list(items, src=0, group=self._control)
        return items[0]

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """Run a block on every rank; if it fails on one rank, all ranks raise that rank's error.

        Collective: every rank must enter it, and the block itself must contain no other collective.
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
        reports = self.all_gather_object(
            (type(error) is UserError, f"{error}", f"{type(error).__name__}: {error}") if error else None
        )
        for rank, report in enumerate(reports):
            if report is not None:
                if error is not None and rank == self.rank:
                    raise mark_collective(error)
                is_user_error, message, full = report
                raise mark_collective(
                    UserError(message) if is_user_error else RuntimeError(f"rank {rank} failed with {full}")
                )

    def all_gather_object(self, item: Value) -> list[Value]:
        """Return the values of all ranks in rank order, on every rank."""
        if self.world_size == 1:
            return [item]
        import torch.distributed

        items: list[Any] = [None] * self.world_size
        with self.step_timer.exchange():
            torch.distributed.all_gather_object(items, item, group=self._control)
        return items

    def broadcast_tensors(self, tensors: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        """Return rank 0's tensors on the device of every rank; the other ranks pass None."""
        import torch

        spec = self.broadcast_object(
            {name: (t.shape, t.dtype) for name, t in tensors.items()} if tensors is not None else {}
        )
        received = {}
        for name, (shape, dtype) in spec.items():
            local = None if tensors is None else tensors[name].to(self.device)
            received[name] = torch.empty(shape, dtype=dtype, device=self.device) if local is None else local
        self.broadcast_in_place(received.values())
        return received


class OneProcess(Collectives):
    """Collectives of a process without others, which need no process group, and so neither Accelerate nor a launch."""

    rank, world_size = 0, 1
