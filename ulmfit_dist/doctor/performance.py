"""Checks of speed and memory: GPU syncs, tokens per second, peak memory, and the largest batch that fits."""

from __future__ import annotations

import resource
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ulmfit_dist.doctor.checks import Context, Finding, failure, ok, skipped, warning
from ulmfit_dist.doctor.ranks import synchronize
from ulmfit_dist.doctor.synthetic import LocalStep, StepSpec, probe_learner, sizes_of, train_steps

WARM_UP = 3
"""Steps before the measurement, in which kernels are selected and compiled, and memory is allocated."""
STEPS_ON_GPU, STEPS_ON_CPU = 10, 2
"""Steps of the speed measurement."""
DOUBLINGS, SECONDS = 8, 20.0
"""Limits of the search for the largest batch: number of doublings, and time in seconds."""


def check_syncs(context: Context) -> Finding:
    """Check that no operation of a training step synchronizes with the GPU, with torch's sync debug mode. Collective."""
    if context.device.type != "cuda":
        return skipped("no GPU to synchronize with")

    def set_debug_mode(step: int) -> None:
        if step == WARM_UP:
            torch.cuda.set_sync_debug_mode("warn")
        if step == WARM_UP + 2:
            torch.cuda.set_sync_debug_mode("default")

    with _recorded_syncs() as lines:
        try:
            for stage in context.config.stages:
                train_steps(probe_learner(context, stage, WARM_UP + 2), WARM_UP + 2, set_debug_mode)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    if lines:
        listed = ", ".join(sorted(lines)[:3])
        return warning(
            f"{len(lines)} line(s) synchronize with the GPU in a step: {listed}", "report a bug: syncs slow training down"
        )
    return ok(f"none in two steps of {' and '.join(context.config.stages)}")


@contextmanager
def _recorded_syncs() -> Iterator[set[str]]:
    """Yield a set that receives the lines of the package at which torch warns of a synchronizing operation."""
    lines: set[str] = set()

    def record(message: Warning | str, *args: object, **kwargs: object) -> None:
        if "synchroniz" in f"{message}":
            frames = [frame for frame in traceback.extract_stack() if "ulmfit_dist/" in frame.filename]
            inner = next(frame for frame in reversed(frames) if not frame.filename.endswith("doctor/performance.py"))
            lines.add(f"{inner.filename.rpartition('ulmfit_dist/')[2]}:{inner.lineno}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = record
        yield lines


def check_speed(context: Context) -> Finding:
    """Measure tokens per second and peak memory of language model training. Collective."""
    sizes = sizes_of(context)
    steps = STEPS_ON_GPU if context.device.type == "cuda" else STEPS_ON_CPU
    warm_up = WARM_UP if context.device.type == "cuda" else 1
    times: list[float] = []

    def clock(step: int) -> None:
        if step in (warm_up, warm_up + steps):
            synchronize(context.device)
            times.append(time.perf_counter())

    train_steps(probe_learner(context, "lm", warm_up + steps), warm_up + steps, clock)
    rate = steps * sizes.rows * sizes.tokens / (times[1] - times[0])
    peak = peak_memory(context.device)
    context.measured |= {"tokens_per_second": round(rate), "peak_memory_gb": round(peak / 1e9, 2)}
    note = "; a full step is faster per token" if sizes.is_reduced else ""
    return ok(f"{rate:,.0f} tokens/s, peak memory {peak / 1e9:.2f} GB per rank; {sizes.describe(context.config)}{note}")


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of the GPU, or of this process on a CPU, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_largest_batch(context: Context) -> Finding:
    """Find the largest batch of the language model that fits the smallest GPU, by doubling the config's."""
    if context.device.type != "cuda":
        return skipped("not measured on a CPU")
    rows = max(1, context.config.lm.global_batch_size // context.world_size)
    fits, reason = 0, f"search ended after {DOUBLINGS} doublings"
    started = time.monotonic()
    for _ in range(DOUBLINGS + 1):
        if not _fits(context, rows):
            reason = f"{rows} do not fit"
            break
        fits, rows = rows, rows * 2
        if time.monotonic() - started > SECONDS / 2:
            reason = "search ended at its time limit"
            break
    smallest = min(context.monitor.exchange("largest batch", fits))
    if smallest == 0:
        return failure(
            f"lm.global_batch_size={context.config.lm.global_batch_size} does not fit the memory of every GPU",
            "set runtime.micro_batch_size, or lower lm.global_batch_size",
        )
    context.measured["largest_batch"] = smallest * context.world_size
    return ok(f"lm.global_batch_size={smallest * context.world_size}, {smallest} rows per rank; {reason}")


def _fits(context: Context, rows: int) -> bool:
    """Return whether two steps of this many rows fit, with Adam's state and a copy of the gradients as in DDP."""
    config = context.config
    try:
        spec = StepSpec(context.device, context.resolved or "fp32", rows, config.lm.seq_len)
        step = LocalStep(config, "lm", spec)
        buckets = [torch.empty_like(parameter) for parameter in step.model.parameters()] if context.world_size > 1 else []
        for _ in range(2):
            step.backward()
            step.step()
        synchronize(context.device)
        del buckets
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True
