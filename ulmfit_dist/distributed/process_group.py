"""Process groups: gradients over NCCL, control traffic over gloo.

On GPUs, tensors on the device (gradients, sums) use the default group, NCCL's. Objects, votes and barriers use a second
group, gloo's, as CPU tensors: no pickle is copied to a GPU, and a rank that waits for `prepare` sleeps in the network, where
NCCL would spin in a kernel. Each group has one timeout: NCCL's own of ten minutes for gradients, three hours for control. On
CPUs the default group does both. The trade-off: between nodes, gloo must find the network as well (GLOO_SOCKET_IFNAME).
"""

from __future__ import annotations

import gc
import sys
from datetime import timedelta
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState

from ulmfit_dist.distributed.rendezvous import meet, read_meeting
from ulmfit_dist.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

States: TypeAlias = "tuple[dict[str, Any], dict[str, Any]]"
"""Accelerate's state of a process: device and ranks, and on top of them the precision."""

CONTROL_TIMEOUT = timedelta(hours=3)
"""Longest wait of a rank for the others: one of them may download, or tokenize a larger shard."""
GRADIENT_TIMEOUT = timedelta(minutes=10)
"""NCCL's own timeout."""

_opened: tuple[ProcessGroup, ProcessGroup] | None = None
"""The default group, and the control group that was opened beside it."""

_abandoned = False


def accelerate_states() -> States:
    """Return the states that Accelerate shares between all its objects in this process."""
    return PartialState._shared_state, AcceleratorState._shared_state


def set_accelerate_states(states: States) -> None:
    """Make these the states that Accelerate shares; objects that exist already keep those that they were made with."""
    PartialState._shared_state, AcceleratorState._shared_state = states


def join_process_group(has_gpu: bool, join_timeout: float = 5.0) -> PartialState:
    """Join the process group that the launcher describes; on one process there is none. At the latest it ends at exit.

    Args:
        join_timeout: minutes to wait for the other ranks.

    Raises:
        UserError: this process has joined a group for the other kind of device; launch variables that make no sense; ranks
            that do not come.
    """
    backend, other = ("nccl", "gloo") if has_gpu else ("gloo", "nccl")
    timeout = {} if has_gpu else {"timeout": CONTROL_TIMEOUT}
    if dist.is_initialized() and dist.get_backend() == other:
        raise UserError(
            f"the ranks have joined a process group of {other}, and {'GPUs' if has_gpu else 'CPUs'} need {backend}: "
            "set ACCELERATE_USE_CPU before the ranks start, and start them again"
        )
    is_first = not dist.is_initialized()
    if is_first:
        _join(backend, timeout, join_timeout)
    state = PartialState(cpu=not has_gpu, **timeout)
    if is_first and dist.is_initialized():
        Finalize(None, destroy_process_group, exitpriority=0)
    return state


def control_group(device: torch.device) -> ProcessGroup | None:
    """Return the group for objects and barriers; None stands for the default group. Collective where it is opened.

    Args:
        device: the device of this rank.
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
    """Drop the reference to the control group, whose threads end with the last one."""
    global _opened
    _opened = None


def abandon_process_group() -> None:
    """Leave the groups to the end of the process, because this rank ends without the others."""
    global _abandoned
    _abandoned = True


def destroy_process_group() -> None:
    """End the groups' threads before the interpreter finalizes: one that takes the GIL then aborts the process.

    For scripts, whose exit cannot be that of `exit.py`. After an error of this rank alone the groups stay, because their
    end would wait for other ranks in a collective that has begun.
    """
    if _abandoned or getattr(sys, "last_value", None) is not None:
        return
    forget_control_group()
    if dist.is_initialized():
        dist.destroy_process_group()
    gc.collect()  # what is left of a fit holds the group, also one that a `Runtime` has left before


def _join(backend: str, timeout: dict[str, Any], join_timeout: float) -> None:
    """Wait for the other ranks, and open the process group on the store that they have met at.

    A launcher that starts all ranks again (`--max_restarts`) keeps its store, in which the last attempt's addresses could be
    found (pytorch issue 135712): each attempt keeps its own under a name of its own.
    """
    meeting = read_meeting()
    if meeting is None:
        return
    store = meet(meeting, join_timeout)
    store.set_timeout(timeout.get("timeout", GRADIENT_TIMEOUT))
    dist.init_process_group(backend, store=store, rank=meeting.rank, world_size=meeting.world_size, **timeout)
