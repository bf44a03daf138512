"""Worker processes that tokenize shards.

Workers are spawned, not forked: a fork of a process that has threads (torch, gloo, pyarrow) may hang. What they make lies
on disk when they say so; nothing but counts comes back. A worker whose parent is gone ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Protocol

from ulmfit_dist.errors import UserError

if TYPE_CHECKING:
    from ulmfit_dist.data.tokenizer import TextTokenizer


class Shards(Protocol):
    """What there is to tokenize: picklable, for it goes to the workers."""

    def open_tokenizer(self) -> TextTokenizer: ...

    def tokenize_shard(self, i: int, tokenizer: TextTokenizer) -> tuple[int, int]:
        """Tokenize one shard and write it; returns its documents and tokens."""


_shards: Shards
_tokenizer: TextTokenizer


def run_in_workers(shards: Shards, which: Sequence[int], num_workers: int) -> Iterator[tuple[int, int]]:
    """Tokenize the shards of these numbers; yields documents and tokens of each as it is done.

    With fewer than two workers it is done in this process.

    Raises:
        UserError: what a worker raised, or one was killed.
    """
    if num_workers < 2:
        tokenizer = shards.open_tokenizer()
        for i in which:
            yield shards.tokenize_shard(i, tokenizer)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_start, initargs=(shards, os.getpid())) as pool:
        tasks = [pool.submit(_tokenize, i) for i in which]
        try:
            for task in as_completed(tasks):
                yield task.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker that tokenizes was killed, perhaps for memory: lower data.shard_documents or runtime.num_workers"
            ) from None
        finally:
            for task in tasks:
                task.cancel()


def _start(shards: Shards, parent: int) -> None:
    global _shards, _tokenizer
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _shards, _tokenizer = shards, shards.open_tokenizer()


def _tokenize(i: int) -> tuple[int, int]:
    return _shards.tokenize_shard(i, _tokenizer)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
