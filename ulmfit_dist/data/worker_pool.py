"""Worker pool: processes that work on shards, this one and the workers that it starts.

Workers are spawned, not forked, because a fork of a process with threads (torch, gloo, pyarrow) may hang. The trade-off: a
worker imports everything again, which takes seconds. Results are written to disk; only counts are returned. A worker exits
when its parent is gone.
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

Resource = TypeVar("Resource")
Result = TypeVar("Result")

_work: Callable[[int, Any], Any]
_resource: Any


def run_in_workers(
    open_resource: Callable[[], Resource], work: Callable[[int, Resource], Result], shards: Sequence[int], num_workers: int
) -> Iterator[Result]:
    """Call `work(shard, resource)` for each shard, and yield the results in order of completion.

    Args:
        open_resource: called once in each process, such as to load a tokenizer. Picklable, as is `work`.
        work: function of one shard.
        num_workers: number of processes, this one included.

    Raises:
        UserError: raised in a worker, or a worker was killed.
    """
    if num_workers < 2:
        resource = open_resource()
        for i in shards:
            yield work(i, resource)
        return
    context = multiprocessing.get_context("spawn")
    # Passed in a file: if a worker exits before it reads arguments larger than a pipe's buffer, this process would block.
    with spawning_workers(), tempfile.NamedTemporaryFile(prefix="ulmfit-dist-") as file:
        pickle.dump((open_resource, work), file)
        file.flush()
        with ProcessPoolExecutor(num_workers - 1, context, initializer=_start, initargs=(file.name, os.getpid())) as pool:
            yield from _run_with_pool({i: pool.submit(_run_task, i) for i in shards}, open_resource, work)


def _run_with_pool(
    tasks: dict[int, Future[Result]], open_resource: Callable[[], Resource], work: Callable[[int, Resource], Result]
) -> Iterator[Result]:
    """Yield the results of tasks; the pool runs them from the first on, this process from the last, until they meet."""
    try:
        resource = open_resource()
        begun = set(tasks.values())
        for i, task in reversed(tasks.items()):
            if task.cancel():
                begun.remove(task)
                yield work(i, resource)
            done = {task for task in begun if task.done()}
            yield from (task.result() for task in done)
            begun -= done
        for task in as_completed(begun):
            yield task.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process exited before it finished. If it printed no error, it was killed, most likely out of memory: "
            "lower data.documents_per_shard or data.num_proc"
        ) from None
    finally:
        for task in tasks.values():
            task.cancel()


def _start(file: str, parent: int) -> None:
    global _work, _resource
    for number in set(signals.SIGNALS) - {signal.SIGTERM}:  # the pool terminates workers by SIGTERM
        signal.signal(number, signal.SIG_IGN)  # sent to the whole process group: the parent handles them
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    atexit.register(os._exit, 0)  # skip freeing millions of strings one by one
    open_resource, _work = pickle.loads(Path(file).read_bytes())
    _resource = open_resource()


def _run_task(i: int) -> Any:
    return _work(i, _resource)


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
