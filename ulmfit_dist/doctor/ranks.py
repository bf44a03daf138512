"""Checks over all ranks: devices, versions and config, the process group and its collectives, and heartbeats."""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter

import torch
import xxhash

from ulmfit_dist.config.loading import to_dict
from ulmfit_dist.data.batches import make_batch_shard
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.doctor.checks import Context, Finding, failure, has_gpu, ok, skipped
from ulmfit_dist.utils.environment import versions

ONE_PROCESS = "one process"
"""Reason for skipping a check of several ranks."""
SMALL_TENSOR = 1 << 20
"""Number of elements in the first all-reduce, whose duration determines the size of the second one."""
SECONDS = 3.0
"""Time limit of the second all-reduce, in seconds."""
REPEATS = 3
"""Number of measured all-reduces."""
OBJECTS = 10
"""Number of measured object collectives."""


def check_devices(context: Context) -> Finding:
    """Check that each rank has its own device, and that all devices have the same type."""
    local = [socket.gethostname(), _gpu_of(context) if has_gpu() else "", "cuda" if has_gpu() else "cpu"]
    devices = context.monitor.exchange("devices", local)
    if context.world_size == 1:
        return skipped(ONE_PROCESS)
    hosts = len({host for host, _, _ in devices})
    if len({device_type for _, _, device_type in devices}) > 1:
        cpus = [rank for rank, (_, _, device_type) in enumerate(devices) if device_type == "cpu"]
        context.monitor.broken = "ranks on GPUs and on CPUs"
        return failure(
            f"no GPU is visible on ranks {cpus}, but on the others",
            "check CUDA_VISIBLE_DEVICES and the driver on their nodes",
        )
    shared = [gpu for (_, gpu), count in Counter((host, gpu) for host, gpu, _ in devices).items() if gpu and count > 1]
    if shared:
        context.monitor.broken = "ranks share a GPU"
        return failure(
            f"several ranks use GPU {shared[0].removeprefix('GPU ')}",
            "start one rank per GPU: `accelerate launch --num_processes`",
        )
    return ok(f"{context.world_size} ranks on {hosts} node(s), {'one GPU each' if has_gpu() else 'on CPUs'}")


def _gpu_of(context: Context) -> str:
    """Return an identifier of this rank's GPU, unique on its node."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[context.local_rank] if context.local_rank < len(visible) else f"GPU {context.local_rank}"


def check_agreement(context: Context) -> Finding:
    """Check that all ranks have equal versions and an equal config."""
    digest = xxhash.xxh3_64_hexdigest(json.dumps(to_dict(context.config), sort_keys=True, default=str).encode())
    by_rank = context.monitor.exchange("versions", {**versions(), "config": digest})
    if context.world_size == 1:
        return skipped(ONE_PROCESS)
    for rank, remote in enumerate(by_rank):
        differing = [name for name, value in remote.items() if value != by_rank[0].get(name)]
        if differing:
            name = differing[0]
            return failure(
                f"rank {rank} has {name} {remote[name]}, rank 0 has {by_rank[0].get(name)}",
                "install the same versions on all nodes, and give all ranks the same config",
            )
    return ok("versions and config are equal on all ranks")


def check_batches(context: Context) -> Finding:
    """Check that the ranks can share the global batches evenly. Raises UserError if they cannot."""
    config = context.config
    shard = make_batch_shard(context.rank, context.world_size, config.runtime)
    sizes = {f"{stage}.global_batch_size": getattr(config, stage).global_batch_size for stage in config.stages}
    for key, size in sizes.items():
        shard.check(size, key)
    return ok(", ".join(f"{key}={size}" for key, size in sizes.items()) + f", shared by {context.world_size} rank(s)")


def check_process_group(context: Context) -> Finding:
    """Create the runtime of a run: process group, device, common precision, heartbeat connections."""
    runtime = Runtime(context.config.runtime)
    context.runtime, context.resolved = runtime, runtime.precision
    if runtime.heartbeat is not None:
        context.monitor.lost = runtime.heartbeat.loss
    precision = runtime.precision
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "no process group"
    return ok(f"{backend}, {runtime.device.type}, all ranks in {precision}")


def check_heartbeat(context: Context) -> Finding:
    """Check that the heartbeat is connected, and all ranks are alive."""
    if context.world_size == 1:
        return skipped(ONE_PROCESS)
    heartbeat = context.runtime.heartbeat if context.runtime is not None else None
    if heartbeat is None:
        return failure(
            "not connected: a rank that dies may go unnoticed",
            "allow connections to any port of rank 0's host, or set MASTER_ADDR to a name that all nodes resolve",
        )
    if (loss := heartbeat.loss()) is not None:
        return failure(loss, "check the output of this rank")
    return ok(f"connected to {len(heartbeat.peers)} peer(s)")


def check_all_reduce(context: Context) -> Finding:
    """Measure an all-reduce of a gradient's size in GB/s, over all ranks, and inside and between several nodes."""
    from ulmfit_dist.doctor.synthetic import num_parameters

    if context.world_size == 1:
        return skipped(ONE_PROCESS)
    elements = num_parameters(context.config)
    speeds, size = {}, 0
    for name, group, is_member in _groups(context):
        if is_member:
            speeds[name], size = _speed(context, group, elements)
    reduced = "" if size == elements else f" (a gradient has {elements * 4 / 1e6:.1f} MB)"
    measured = ", ".join(f"{speed:.2f} GB/s {name}" for name, speed in speeds.items())
    return ok(f"{size * 4 / 1e6:.1f} MB{reduced}: {measured}")


def _groups(context: Context) -> list[tuple[str, torch.distributed.ProcessGroup | None, bool]]:
    """Return the groups to measure as name, group, and whether this rank is a member. Collective."""
    import torch.distributed as dist

    hosts = context.monitor.exchange("hosts", socket.gethostname())
    by_host: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        by_host.setdefault(host, []).append(rank)
    if len(by_host) == 1:
        return [("inside the node", None, True)]
    inside = [(ranks, dist.new_group(ranks)) for ranks in by_host.values() if len(ranks) > 1]
    groups = [("inside the node", group, True) for ranks, group in inside if context.rank in ranks]
    first = [ranks[0] for ranks in by_host.values()]
    return [*groups, ("between nodes", dist.new_group(first), context.rank in first), ("over all ranks", None, True)]


def _speed(context: Context, group: torch.distributed.ProcessGroup | None, elements: int) -> tuple[float, int]:
    """Return the bus bandwidth in GB/s, where a link carries 2 (n - 1) / n of the tensor, and the number of elements."""
    import torch.distributed as dist

    ranks = dist.get_world_size(group)
    small = min(SMALL_TENSOR, elements)
    seconds = _seconds_of_all_reduce(context, group, small)
    agreed = torch.tensor([seconds], device=context.device, dtype=torch.float32)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX, group=group)
    size = min(elements, max(small, int(small * SECONDS / max(float(agreed), 1e-6) / (REPEATS + 1))))
    seconds = _seconds_of_all_reduce(context, group, size)
    return 2 * (ranks - 1) / ranks * size * 4 / seconds / 1e9, size


def _seconds_of_all_reduce(context: Context, group: torch.distributed.ProcessGroup | None, elements: int) -> float:
    """Return the shortest duration of an all-reduce, in seconds. Raises RuntimeError if its sum is wrong."""
    import torch.distributed as dist

    ranks, best = dist.get_world_size(group), float("inf")
    for _ in range(REPEATS + 1):
        tensor = torch.ones(elements, device=context.device, dtype=torch.float32)
        synchronize(context.device)
        started = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        synchronize(context.device)
        best = min(best, time.perf_counter() - started)
        if float(tensor.min()) != ranks or float(tensor.max()) != ranks:
            raise RuntimeError(f"an all-reduce of ones over {ranks} ranks did not return {ranks} everywhere")
    return best


def check_objects(context: Context) -> Finding:
    """Measure object collectives, which exchange errors and checkpoints, in milliseconds."""
    if context.world_size == 1 or context.runtime is None:
        return skipped(ONE_PROCESS)
    started = time.perf_counter()
    for i in range(OBJECTS):
        gathered = context.runtime.all_gather_object((i, context.rank))
        if gathered != [(i, rank) for rank in range(context.world_size)]:
            raise RuntimeError(f"an all-gather of ranks returned {gathered}")
    milliseconds = (time.perf_counter() - started) / OBJECTS * 1000
    return ok(f"{milliseconds:.1f} ms per all-gather")


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; on a CPU do nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
