"""Checks over ranks: devices, versions and config, the process group, the speed of its collectives, and the rank watch."""

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
SMALL_TENSOR = 1 << 20
"""Elements of the first all-reduce, from whose time the size of the second one follows."""
SECONDS = 3.0
"""Seconds that the second all-reduce may take."""
REPEATS = 3
OBJECTS = 10


def check_devices(context: Context) -> Finding:
    """One device per rank, all of the same kind."""
    own = [socket.gethostname(), _gpu_of(context) if has_gpu() else "", "cuda" if has_gpu() else "cpu"]
    everyone = context.monitor.exchange("devices", own)
    if context.world_size == 1:
        return skipped(ONE_PROCESS)
    hosts = len({host for host, _, _ in everyone})
    if len({kind for _, _, kind in everyone}) > 1:
        cpus = [rank for rank, (_, _, kind) in enumerate(everyone) if kind == "cpu"]
        context.monitor.broken = "ranks on GPUs and on CPUs"
        return failure(f"ranks {cpus} see no GPU, others do", "check CUDA_VISIBLE_DEVICES and the driver on their nodes")
    twice = [gpu for (_, gpu), count in Counter((host, gpu) for host, gpu, _ in everyone).items() if gpu and count > 1]
    if twice:
        context.monitor.broken = "ranks share a GPU"
        return failure(
            f"{twice[0]} is the GPU of several ranks", "start one rank per GPU: `accelerate launch --num_processes`"
        )
    kind = "GPU each" if has_gpu() else "on CPUs"
    return ok(f"{context.world_size} ranks on {hosts} node(s), {f'one {kind}' if has_gpu() else kind}")


def _gpu_of(context: Context) -> str:
    """Return an identity of the GPU, unique on its node."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[context.local_rank] if context.local_rank < len(visible) else f"GPU {context.local_rank}"


def check_same(context: Context) -> Finding:
    """Equal versions and equal configs on all ranks."""
    digest = xxhash.xxh3_64_hexdigest(json.dumps(to_dict(context.config), sort_keys=True, default=str).encode())
    everyone = context.monitor.exchange("versions", {**versions(), "config": digest})
    if context.world_size == 1:
        return skipped(ONE_PROCESS)
    for rank, other in enumerate(everyone):
        differing = [name for name, value in other.items() if value != everyone[0].get(name)]
        if differing:
            name = differing[0]
            return failure(
                f"rank {rank} has {name} {other[name]}, rank 0 has {everyone[0].get(name)}",
                "install the same versions on all nodes, and give all ranks the same config",
            )
    return ok("versions and config are equal on all ranks")


def check_batches(context: Context) -> Finding:
    """Global batch sizes that the ranks can share evenly. Raises UserError."""
    config = context.config
    share = make_batch_shard(context.rank, context.world_size, config.runtime)
    sizes = {f"{stage}.global_batch_size": getattr(config, stage).global_batch_size for stage in config.stages}
    for key, size in sizes.items():
        share.check(size, key)
    return ok(", ".join(f"{key}={size}" for key, size in sizes.items()) + f", shared by {context.world_size} rank(s)")


def check_joining(context: Context) -> Finding:
    """The runtime of a run: process group, device, precision that all ranks agree on, rank watch."""
    runtime = Runtime(context.config.runtime)
    context.runtime, context.resolved = runtime, runtime.precision
    if runtime.heartbeat is not None:
        context.monitor.lost = runtime.heartbeat.loss
    precision = runtime.precision
    backend = torch.distributed.get_backend() if torch.distributed.is_initialized() else "no process group"
    return ok(f"{backend}, {runtime.device.type}, all ranks in {precision}")


def check_watch(context: Context) -> Finding:
    """The rank watch: connected, and all ranks alive."""
    if context.world_size == 1:
        return skipped(ONE_PROCESS)
    heartbeat = context.runtime.heartbeat if context.runtime is not None else None
    if heartbeat is None:
        return failure(
            "not connected: a rank that dies would not be noticed",
            "let the nodes connect to any port of rank 0's host, or set MASTER_ADDR to a name that all nodes resolve",
        )
    if (loss := heartbeat.loss()) is not None:
        return failure(loss, "look at the output of this rank")
    return ok(f"connected to {len(heartbeat.peers)} peer(s)")


def check_all_reduce(context: Context) -> Finding:
    """An all-reduce of a gradient's size, in GB/s: over all ranks, and inside and between nodes where there are several."""
    from ulmfit_dist.doctor.synthetic import num_parameters

    if context.world_size == 1:
        return skipped(ONE_PROCESS)
    elements = num_parameters(context.config)
    speeds, size = {}, 0
    for name, group, is_member in _groups(context):
        if is_member:
            speeds[name], size = _speed(context, group, elements)
    reduced = "" if size == elements else f" (a gradient has {elements * 4 / 1e6:.1f} MB)"
    found = ", ".join(f"{speed:.2f} GB/s {name}" for name, speed in speeds.items())
    return ok(f"{size * 4 / 1e6:.1f} MB{reduced}: {found}")


def _groups(context: Context) -> list[tuple[str, torch.distributed.ProcessGroup | None, bool]]:
    """Groups to measure, with whether this rank is in them: made on all ranks in the same order."""
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
    """Bus bandwidth in GB/s, of the 2 (n - 1) / n of a tensor that a link carries, and the elements of the tensor."""
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
    """Seconds of one all-reduce. Raises RuntimeError where its sum is wrong."""
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
            raise RuntimeError(f"an all-reduce of ones over {ranks} ranks is not {ranks} everywhere")
    return best


def check_objects(context: Context) -> Finding:
    """Object collectives, by which ranks agree on errors and checkpoints, in milliseconds."""
    if context.world_size == 1 or context.runtime is None:
        return skipped(ONE_PROCESS)
    started = time.perf_counter()
    for number in range(OBJECTS):
        found = context.runtime.all_gather_object((number, context.rank))
        if found != [(number, rank) for rank in range(context.world_size)]:
            raise RuntimeError(f"gathered {found}")
    milliseconds = (time.perf_counter() - started) / OBJECTS * 1000
    return ok(f"{milliseconds:.1f} ms for a value of each rank on all ranks")


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; on a CPU nothing is under way."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
