"""Checks of speed and memory: no waits for the GPU, tokens per second, peak memory, the largest batch that fits."""

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
from ulmfit_dist.doctor.synthetic import LocalStep, probe_learner, sizes_of, train_steps

WARM_UP = 3
"""Steps before any is measured: kernels are chosen and compiled, memory is allocated."""
STEPS_ON_GPU, STEPS_ON_CPU = 10, 2
DOUBLINGS, SECONDS = 8, 20.0
"""Limits of the search for the largest batch: doublings of the config's, and seconds."""


def check_waits(context: Context) -> Finding:
    """No operation of a training step waits for the GPU, by torch's own debug mode. Collective."""
    if context.device.type != "cuda":
        return skipped("no GPU to wait for")

    def watch(step: int) -> None:
        if step == WARM_UP:
            torch.cuda.set_sync_debug_mode("warn")
        if step == WARM_UP + 2:
            torch.cuda.set_sync_debug_mode("default")

    with _waits_noted() as places:
        try:
            for stage in context.config.stages:
                train_steps(probe_learner(context, stage, WARM_UP + 2), WARM_UP + 2, watch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    if places:
        named = ", ".join(sorted(places)[:3])
        return warning(
            f"{len(places)} place(s) wait for the GPU in a step: {named}", "report it: steps are slower than need be"
        )
    return ok(f"none in two steps of {' and '.join(context.config.stages)}")


@contextmanager
def _waits_noted() -> Iterator[set[str]]:
    """Places of the package at which torch warns of an operation that waits for the GPU."""
    places: set[str] = set()

    def note(message: Warning | str, *where: object, **more: object) -> None:
        if "synchroniz" in f"{message}":
            own = [frame for frame in traceback.extract_stack() if "ulmfit_dist/" in frame.filename]
            inner = next(frame for frame in reversed(own) if not frame.filename.endswith("doctor/performance.py"))
            places.add(f"{inner.filename.rpartition('ulmfit_dist/')[2]}:{inner.lineno}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield places


def check_speed(context: Context) -> Finding:
    """Tokens per second of the language model's training, and peak memory. Collective."""
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
    few = "; a full step is faster per token" if sizes.is_reduced else ""
    return ok(f"{rate:,.0f} tokens/s, peak memory {peak / 1e9:.2f} GB a rank; {sizes.describe(context.config)}{few}")


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU, or of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def check_largest_batch(context: Context) -> Finding:
    """The largest batch of the language model that fits the GPU, by doubling the config's; over ranks the smallest."""
    if context.device.type != "cuda":
        return skipped("not measured on a CPU")
    rows = max(1, context.config.lm.global_batch_size // context.world_size)
    fits, ended = 0, f"more was not tried after {DOUBLINGS} doublings"
    started = time.monotonic()
    for _ in range(DOUBLINGS + 1):
        if not _fits(context, rows):
            ended = f"{rows} do not fit"
            break
        fits, rows = rows, rows * 2
        if time.monotonic() - started > SECONDS / 2:
            ended = "more was not tried for lack of time"
            break
    fewest = min(context.monitor.exchange("largest batch", fits))
    if fewest == 0:
        return failure(
            f"lm.global_batch_size={context.config.lm.global_batch_size} does not fit the memory of every GPU",
            "set runtime.micro_batch_size, or lower lm.global_batch_size",
        )
    context.measured["largest_batch"] = fewest * context.world_size
    return ok(f"lm.global_batch_size={fewest * context.world_size}, {fewest} rows a rank; {ended}")


def _fits(context: Context, rows: int) -> bool:
    """True where two steps of so many rows run, with Adam's state and a copy of the gradients as DDP has it."""
    config = context.config
    try:
        step = LocalStep(config, "lm", context.device, context.resolved or "fp32", rows, config.lm.seq_len)
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
