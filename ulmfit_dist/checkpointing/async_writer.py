"""Writes checkpoints behind the training: rank 0's thread, one checkpoint at a time."""

from __future__ import annotations

import threading
from pathlib import Path

from ulmfit_dist.checkpointing.manager import Checkpoint, CheckpointManager
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


class AsyncCheckpointWriter:
    """Writes to a stage's folder; what fails is a warning, and the checkpoints before it stay.

    Attributes:
        last: the newest checkpoint that is safely on the disk; None before the first.
        error: why the newest one is not; None if it is.
    """

    def __init__(self, folder: CheckpointManager, keep: int, last: Path | None = None):
        self.folder, self.keep, self.last = folder, keep, last
        self.error: Exception | None = None
        self._thread: threading.Thread | None = None

    def write(self, content: Checkpoint) -> None:
        """Begin to write; waits for the one before to be done."""
        self.wait()
        self._thread = threading.Thread(
            target=self._write, args=(content,), name="checkpoint"
        )  # no daemon: it ends its work
        self._thread.start()

    def wait(self) -> None:
        """Until the newest checkpoint is on the disk, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, content: Checkpoint) -> None:
        try:
            self.last = self.folder.write(content, self.keep)
            self.error = None
        except Exception as error:
            self.error = error
            kept = f"the last good one is {self.last}" if self.last else "there is none before it"
            where = self.folder.at(content.state["position"]["stage_step"])
            logger.warning(f"{where} could not be written ({error}): {kept}; training continues")
