"""Worker processes import the script that started them, and must not begin its work anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ulmfit_dist.errors import UserError

_MARK = "ULMFIT_DIST_WORKER_OF"


@contextmanager
def spawning_workers() -> Iterator[None]:
    """Let processes that are started in here know that they are workers of this one."""
    os.environ[_MARK] = str(os.getpid())
    try:
        yield
    finally:
        del os.environ[_MARK]


def refuse_in_worker() -> None:
    """Raise UserError in a worker."""
    if os.environ.get(_MARK) == str(os.getppid()):
        raise UserError("a worker process imports this script anew: put what it does below: if __name__ == '__main__':")
