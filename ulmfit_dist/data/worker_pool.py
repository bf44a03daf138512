"""Processes that work on shards: this one, and workers that it starts.

Workers are spawned, not forked: a fork of a process that has threads (torch, gloo, pyarrow) may hang. What they make lies
on disk when they say so; nothing but counts comes back. A worker whose parent is gone ends by itself.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from ulmfit_dist.distributed import signals
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.spawn_guard import spawning_workers

Tools = TypeVar("Tools")
Result = TypeVar("Result")

_work: Callable[[int, Any], Any]
_tools: Any


def run_in_workers(
    open_tools: Callable[[], Tools], work: Callable[[int, Tools], Result], shards: Sequence[int], num_workers: int
) -> Iterator[Result]:
    """Do a piece of work for each of the shards of these numbers; yields what each comes to as it is done.

    Args:
        open_tools: what a process needs for the work, made once in each. Picklable, as is `work`.
        work: what to do for one shard.
        num_workers: how many processes work, this one among them.

    Raises:
        UserError: what a worker raised, or one was killed.
    """
    if num_workers < 2:
        tools = open_tools()
        for i in shards:
            yield work(i, tools)
        return
    context = multiprocessing.get_context("spawn")
    # By a file: were a worker to end before it reads arguments that fill a pipe, this process would write for ever.
    with spawning_workers(), tempfile.NamedTemporaryFile(prefix="ulmfit-dist-") as file:
        pickle.dump((open_tools, work), file)
        file.flush()
        with ProcessPoolExecutor(num_workers - 1, context, initializer=_start, initargs=(file.name, os.getpid())) as pool:
            yield from _share({i: pool.submit(_do, i) for i in shards}, open_tools, work)


def _share(
    tasks: dict[int, Future[Result]], open_tools: Callable[[], Tools], work: Callable[[int, Tools], Result]
) -> Iterator[Result]:
    """What tasks come to: a pool does them from the first on, this process from the last, until they meet."""
    try:
        tools = open_tools()
        begun = set(tasks.values())
        for i, task in reversed(tasks.items()):
            if task.cancel():
                begun.remove(task)
                yield work(i, tools)
            done = {task for task in begun if task.done()}
            yield from (task.result() for task in done)
            begun -= done
        for task in as_completed(begun):
            yield task.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process ended before its work was done. If it said nothing, it was killed, perhaps for memory: "
            "lower data.documents_per_shard or data.num_proc"
        ) from None
    finally:
        for task in tasks.values():
            task.cancel()


def _start(file: str, parent: int) -> None:
    global _work, _tools
    for number in set(signals.SIGNALS) - {signal.SIGTERM}:  # by which the pool itself ends a worker
        signal.signal(number, signal.SIG_IGN)  # they may reach the whole group: the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    atexit.register(os._exit, 0)  # at once: to free millions of strings one by one takes a while
    open_tools, _work = pickle.loads(Path(file).read_bytes())
    _tools = open_tools()


def _do(i: int) -> Any:
    return _work(i, _tools)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
