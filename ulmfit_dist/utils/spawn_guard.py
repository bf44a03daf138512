"""Guard against scripts that start their work again in worker processes, which re-import them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ulmfit_dist.errors import UserError

_MARK = "ULMFIT_DIST_WORKER_OF"
"""Environment variable with the process id of a worker's parent."""


@contextmanager
def spawning_workers() -> Iterator[None]:
    """Mark the processes started in a block as workers of this process."""
    os.environ[_MARK] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[_MARK]


def refuse_in_worker() -> None:
    """Raise UserError in a worker process."""
    if os.environ.get(_MARK) == str(os.getppid()):
        raise UserError("worker processes re-import your script: guard its entry point with: if __name__ == '__main__':")
