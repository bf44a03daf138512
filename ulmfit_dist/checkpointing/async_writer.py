"""The thread of rank 0 that writes checkpoints while training continues, one at a time.

Training waits for the copy of the state only, not for the disk. Trade-off: the copy occupies host memory until it is
written, and a checkpoint that cannot be written is a warning instead of an error.
"""

from __future__ import annotations

import threading
from pathlib import Path

from ulmfit_dist.checkpointing.manager import Checkpoint, CheckpointManager
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


class AsyncCheckpointWriter:
    """Writes checkpoints of a stage; a failed write is a warning, and earlier checkpoints are kept.

    Args:
        manager: of the stage's checkpoints.
        keep_latest: number of latest checkpoints that are kept, besides the best.
        last: checkpoint that the run resumes from.

    Attributes:
        last: the newest checkpoint that is completely on disk; None before the first.
        error: error of the newest write; None if it succeeded.
    """

    def __init__(self, manager: CheckpointManager, keep_latest: int, last: Path | None = None):
        self.manager, self.keep_latest, self.last = manager, keep_latest, last
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None

    def write(self, checkpoint: Checkpoint) -> None:
        """Start writing; waits for the previous write to finish."""
        self.wait()
        # not a daemon thread: the process waits at its exit until the checkpoint is written
        self._thread = threading.Thread(target=self._write, args=(checkpoint,), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait until the newest checkpoint is on disk, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self.last = self.manager.write(checkpoint, self.keep_latest)
            self.error = None
        except Exception as error:
            self.error = error
            path = self.manager.at(checkpoint.step)
            kept = f"the last good checkpoint is {self.last}" if self.last else "there is no earlier checkpoint"
            logger.warning(f"{path} could not be written ({error}): {kept}; training continues")
