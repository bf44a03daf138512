"""The checkpoint that a run resumes from: the newest intact one, and its match with the config.

All ranks get its metadata; only rank 0 reads its files. Trade-off: tensors are broadcast, so other nodes need no access to
the folder, but a resume on many ranks waits for one disk.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ulmfit_dist.checkpointing.compatibility import differences
from ulmfit_dist.checkpointing.manager import CheckpointManager, CorruptCheckpointError, read_lines, read_state, read_tensors
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import WEIGHTS, ModelBundle
from ulmfit_dist.training.train_state import TrainState
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

METADATA = {"training_id", "data_fingerprint", "world_size", "wandb_run_id"}
"""Keys of state.json that are read before training begins."""


@dataclass
class ResumePoint:
    """A checkpoint to resume from.

    Attributes:
        path: folder of the checkpoint.
        state: content of state.json.
        train_state: progress of the stage.
    """

    path: Path
    state: dict[str, Any]
    train_state: TrainState

    def check(self, config: Config, stage: str, store: TokenStore) -> None:
        """Raise UserError if it was made with another config, or from other texts."""
        fingerprints = store.fingerprint, self.state["data_fingerprint"]
        changed = differences(stage, config, self.state["config"], *fingerprints, self.state.get("pseudo_labels"))
        if changed:
            raise UserError(
                f"{self.path} was made with another {', '.join(changed)}: start over with --fresh, or give the run another "
                f"name, such as name={config.name}-2"
            )

    def is_of(self, bundle: ModelBundle) -> bool:
        """Return whether an exported model comes from the same training."""
        return bool(self.state["training_id"] == bundle.training.get("training_id"))

    def lines(self) -> str:
        """Return the stage's part of metrics.jsonl. Raises UserError."""
        try:
            return read_lines(self.path)
        except CorruptCheckpointError as error:
            raise UserError(f"{self.path}: {error}") from None

    def tensors(self, runtime: Runtime) -> dict[str, dict[str, Tensor]]:
        """Return the tensors by file and name, on every rank's device. Collective. Raises UserError."""
        local: dict[str, dict[str, Tensor]] = {}
        with runtime.fail_together():
            if runtime.is_main:
                try:
                    local = read_tensors(self.path)
                except CorruptCheckpointError as error:
                    raise UserError(f"{self.path}: {error}") from None
        names = runtime.broadcast_object(list(local))
        return {name: runtime.broadcast_tensors(local.get(name)) for name in names}


def find_checkpoint(checkpoints_dir: Path, run_dir: Path, stage: str, runtime: Runtime) -> ResumePoint | None:
    """Return the newest intact checkpoint of a stage; warns of each damaged one. Collective.

    Args:
        checkpoints_dir: folder of all stages' checkpoints.
        run_dir: folder of the exported models.

    Raises:
        UserError: all checkpoints are damaged, and the stage has no exported model either.
    """
    resume_point = None
    with runtime.fail_together():
        if runtime.is_main:
            resume_point = _find(checkpoints_dir, run_dir, stage)
    return runtime.broadcast_object(resume_point)


def _find(checkpoints_dir: Path, run_dir: Path, stage: str) -> ResumePoint | None:
    manager = CheckpointManager(checkpoints_dir, stage)
    with suppress(OSError):  # the folder of another user can be read, but not changed
        manager.tidy()
    resume_point = manager.newest_intact(lambda path: _read(path, stage), _warn)
    if resume_point is None and manager.newest_first() and not (run_dir / stage / WEIGHTS).is_file():
        raise UserError(f"{manager.path}: all checkpoints are damaged: start over with --fresh")
    return resume_point


def _read(path: Path, stage: str) -> ResumePoint:
    """Return a resume point. Raises CorruptCheckpointError if it lacks what is needed before training begins."""
    state = read_state(path)
    try:
        train_state, phases = TrainState.from_json(state["train_state"]), state["config"][stage]["phases"]
        if train_state.stage != stage or train_state.num_phases != len(phases):
            raise ValueError(f"not a train state of {stage} with {len(phases)} phase(s)")
        if not train_state.is_finished and train_state.first_epoch >= phases[train_state.phase]["epochs"]:
            raise ValueError("its position is beyond the end of the phase")
        missing = METADATA - state.keys()
        if missing:
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        return ResumePoint(path, state, train_state)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"state.json: {type(error).__name__}: {error}") from None


def _warn(path: Path, error: CorruptCheckpointError) -> None:
    logger.warning(f"skipping {path}: the checkpoint is damaged ({error})")
