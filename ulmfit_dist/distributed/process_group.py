"""Process groups: gradients over NCCL, control traffic over gloo.

On GPUs, tensors on the device (gradients, sums) use the default group, NCCL. Objects, votes and barriers use a second
group, gloo, as CPU tensors: no pickle is copied to a GPU, and a rank that waits for `prepare` sleeps in a system call,
while NCCL would spin in a kernel. Each group has its own timeout: NCCL's ten minutes for gradients, three hours for
control. On CPUs the default group serves both. The trade-off: between nodes, gloo must find the network as well
(GLOO_SOCKET_IFNAME).
"""

from __future__ import annotations

import gc
import sys
from datetime import timedelta
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist

# Default arguments of this module's functions hold the process group that exists at its import. Imported later, by DDP, it
# would keep the group's threads alive past the end, where they may abort the process (pytorch issue 190489).
import torch.distributed.nn.functional
from accelerate import PartialState
from accelerate.state import AcceleratorState

from ulmfit_dist.distributed.rendezvous import meet, read_meeting
from ulmfit_dist.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

States: TypeAlias = "tuple[dict[str, Any], dict[str, Any]]"
"""Accelerate's shared states of a process: device and ranks, and the precision."""

CONTROL_TIMEOUT = timedelta(hours=3)
"""Timeout of control traffic: one rank may download, or tokenize a larger shard, while the others wait."""
GRADIENT_TIMEOUT = timedelta(minutes=10)
"""NCCL's default timeout."""

_opened: tuple[ProcessGroup, ProcessGroup] | None = None
"""The default group, and the control group opened with it."""

_abandoned = False
"""True after an error of this rank only: the groups stay open until the process ends."""


def accelerate_states() -> States:
    """Return the states that Accelerate shares between all of its objects in this process."""
    return PartialState._shared_state, AcceleratorState._shared_state


def set_accelerate_states(states: States) -> None:
    """Set the states that Accelerate shares; existing objects keep theirs."""
    PartialState._shared_state, AcceleratorState._shared_state = states


def join_process_group(has_gpu: bool, join_timeout: float = 5.0) -> PartialState:
    """Join the process group that the launcher describes, if there is more than one process. It is destroyed at exit.

    Args:
        join_timeout: time limit of the wait for the other ranks, in minutes.

    Raises:
        UserError: if this process has joined a group for the other device type, launch variables are invalid, or ranks do
            not join in time.
    """
    backend, other = ("nccl", "gloo") if has_gpu else ("gloo", "nccl")
    timeout = {} if has_gpu else {"timeout": CONTROL_TIMEOUT}
    if dist.is_initialized() and dist.get_backend() == other:
        raise UserError(
            f"the process group uses {other}, but {'GPUs' if has_gpu else 'CPUs'} need {backend}: "
            "set ACCELERATE_USE_CPU before the ranks start, and restart them"
        )
    is_first = not dist.is_initialized()
    if is_first:
        _join(backend, timeout, join_timeout)
    state = PartialState(cpu=not has_gpu, **timeout)
    if is_first and dist.is_initialized():
        Finalize(None, destroy_process_group, exitpriority=0)
    return state


def control_group(device: torch.device) -> ProcessGroup | None:
    """Return the group for objects and barriers; None stands for the default group. The first call is collective.

    Args:
        device: device of this rank.
    """
    global _opened
    if device.type == "cpu" or not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    default = dist.group.WORLD
    assert default is not None
    if _opened is None or _opened[0] is not default:
        _opened = (default, dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT, group_desc="control"))
    return _opened[1]


def forget_control_group() -> None:
    """Drop the reference to the control group, whose threads end with its last reference."""
    global _opened
    _opened = None


def abandon_process_group() -> None:
    """Keep the groups open until the process ends, because this rank exits without the others."""
    global _abandoned
    _abandoned = True


def destroy_process_group() -> None:
    """End the groups' threads before the interpreter finalizes, where one that takes the GIL would abort the process.

    For scripts, which do not exit through `exit.py`. After an error of this rank only, the groups stay open, because
    destroying them would wait for the other ranks in a pending collective.
    """
    if _abandoned or getattr(sys, "last_value", None) is not None:
        return
    forget_control_group()
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # objects of an earlier fit hold the group, even one that a `Runtime` has already left


def _join(backend: str, timeout: dict[str, Any], join_timeout: float) -> None:
    """Wait for the other ranks, and open the process group on their store.

    A launcher that restarts all ranks (`--max_restarts`) keeps its store, which still holds the addresses of the last
    attempt (pytorch issue 135712). Each attempt therefore uses its own prefix.
    """
    meeting = read_meeting()
    if meeting is None:
        return
    store = meet(meeting, join_timeout)
    store.set_timeout(timeout.get("timeout", GRADIENT_TIMEOUT))
    dist.init_process_group(backend, store=store, rank=meeting.rank, world_size=meeting.world_size, **timeout)
