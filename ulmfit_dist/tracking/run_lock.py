"""Lock of a run directory, so that two processes do not write it at once.

The operating system releases it when a process ends in any way. Trade-off: some file systems of clusters have no locks;
there a warning is printed instead.
"""

from __future__ import annotations

from types import TracebackType

from filelock import FileLock, Timeout

from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


class RunLock:
    """Lock of a run directory, as a context manager too; a directory that does not exist is not locked.

    Args:
        config: config of the run.
    """

    def __init__(self, config: Config):
        self.name, self.folder = config.name, config.run_dir
        self._lock = FileLock(self.folder / ".lock", fallback_to_soft=False)  # a soft lock would outlive a killed process

    def acquire(self) -> None:
        """Lock the directory until `release` or the end of this process. Raises UserError if another process has it."""
        if self._lock.is_locked or not self.folder.is_dir():
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.folder} is locked by another training process: wait until it ends, or give this run another name, "
                f"such as name={self.name}-2"
            ) from None
        except OSError as error:  # a file system without locks, such as some clusters' Lustre
            logger.warning(
                f"{self._lock.lock_file} cannot be locked ({error.strerror}): start no other training in this folder"
            )

    def release(self) -> None:
        """Unlock the directory."""
        self._lock.release()

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
