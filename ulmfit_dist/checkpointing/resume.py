"""What a run finds of itself: the newest checkpoint that is intact, and whether it is of the config at hand."""

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
from ulmfit_dist.training.train_state import RecipePosition
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


@dataclass
class ResumePoint:
    """A checkpoint to go on from. All ranks know of it; rank 0 alone reads its files.

    Attributes:
        path: its folder.
        state: the content of state.json.
        is_end: whether nothing of the recipe is left to do.
    """

    path: Path
    state: dict[str, Any]
    is_end: bool

    def check(self, config: Config, stage: str, store: TokenStore) -> None:
        """Raise UserError if it was made with another config, or from other texts."""
        changed = differences(stage, config, self.state["config"], store.fingerprint, self.state["data_fingerprint"])
        if changed:
            raise UserError(
                f"{self.path} was made with another {', '.join(changed)}: start over with --fresh, or give the run another "
                f"name, such as name={config.name}-2"
            )

    def is_of(self, exported: ModelBundle) -> bool:
        """Whether an exported model comes from the training that this checkpoint is of."""
        return bool(self.state["training_id"] == exported.training.get("training_id"))

    def lines(self) -> str:
        """The stage's part of metrics.jsonl. Raises UserError."""
        try:
            return read_lines(self.path)
        except CorruptCheckpointError as error:
            raise UserError(f"{self.path}: {error}") from None

    def tensors(self, runtime: Runtime) -> dict[str, dict[str, Tensor]]:
        """By file and name, on every rank's device. Collective. Raises UserError."""
        mine: dict[str, dict[str, Tensor]] = {}
        with runtime.fail_together():
            if runtime.is_main:
                try:
                    mine = read_tensors(self.path)
                except CorruptCheckpointError as error:
                    raise UserError(f"{self.path}: {error}") from None
        names = runtime.broadcast_object(list(mine))
        return {name: runtime.broadcast_tensors(mine.get(name)) for name in names}


def find_checkpoint(config: Config, runtime: Runtime, stage: str) -> ResumePoint | None:
    """The newest intact checkpoint of a stage; damaged ones are named and passed over. Collective.

    Raises:
        UserError: all are damaged, and the stage has no exported model either.
    """
    found = None
    with runtime.fail_together():
        if runtime.is_main:
            found = _find(config, stage)
    return runtime.broadcast_object(found)


def _find(config: Config, stage: str) -> ResumePoint | None:
    folder = CheckpointManager(config.checkpoints_dir, stage)
    with suppress(OSError):  # another user's: what is there can be read all the same
        folder.tidy()
    found = folder.newest_intact(lambda path: _read(path, stage), _warn)
    if found is None and folder.newest_first() and not (config.run_dir / stage / WEIGHTS).is_file():
        raise UserError(f"{folder.path}: all checkpoints are damaged: start over with --fresh")
    return found


def _read(path: Path, stage: str) -> ResumePoint:
    """Raises DamagedError where what is needed before training begins is not there."""
    state = read_state(path)
    try:
        position, phases = RecipePosition.from_json(state["position"]), state["config"][stage]["phases"]
        is_end = position.phase >= len(phases)
        if not is_end and position.epoch >= phases[position.phase]["epochs"]:
            raise ValueError("a position beyond the end")
        missing = {"training_id", "data_fingerprint", "world_size", "wandb_run_id"} - state.keys()
        if missing:
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        return ResumePoint(path, state, is_end)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"state.json: {type(error).__name__}: {error}") from None


def _warn(path: Path, error: CorruptCheckpointError) -> None:
    logger.warning(f"{path} is damaged ({error}) and passed over")
