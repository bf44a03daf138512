"""Selection of the epoch whose model is exported, and early stopping.

Both follow from the validation score after each epoch, and rank 0 decides, so that all ranks stop together. The best epoch's
weights are in its checkpoint, which is kept in any case; its result is part of each checkpoint, so a killed run selects and
stops as an uninterrupted one. Trade-off: if that checkpoint is damaged, the last epoch's model is exported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fastai.callback.core import Callback

from ulmfit_dist.training.callbacks.order import CallbackOrder
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class EpochResult:
    """Validation result of an epoch.

    Attributes:
        number: number of the epoch in the stage, from 1.
        step: optimizer steps of the stage at its end, which name its checkpoint.
        score: validation score; higher is better.
        metrics: validation metrics by name.
        tables: artifacts of the epoch as JSON; on rank 0.
    """

    number: int
    step: int
    score: float
    metrics: dict[str, float]
    tables: dict[str, Any]


class ModelSelectionCallback(Callback):
    """Keeps the result of the best epoch, and stops the stage after some epochs without improvement.

    Of equal scores the last epoch is exported, because its checkpoint is the one that is kept; an equal score does not count
    as an improvement.

    Args:
        patience: epochs without improvement after which the stage stops; None: never.
        tables: returns the artifacts of the last validation.

    Attributes:
        best: the best epoch so far.
        waited: epochs since the last improvement.
    """

    order = CallbackOrder.MODEL_SELECTION

    def __init__(self, patience: int | None, tables: Callable[[], dict[str, Any]]):
        self.patience, self.tables = patience, tables
        self.best: EpochResult | None = None
        self.waited = 0

    def after_epoch(self) -> None:
        learn = self.learn
        self.waited = 0 if self.best is None or learn.score > self.best.score else self.waited + 1
        if self.best is None or learn.score >= self.best.score:
            self.best = EpochResult(
                learn.stage_epoch, learn.stage_step, learn.score, dict(learn.valid_metrics), self.tables()
            )
        if self.patience is not None:
            runtime = learn.accelerate.runtime
            learn.train_state.is_stopped = runtime.broadcast_object(self.waited >= self.patience)
            if learn.train_state.is_stopped:
                logger.info(f"{learn.stage}: stopped early: no improvement in {self.waited} epoch(s)")

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch and the epochs since the last improvement, as JSON."""
        return {"best": None if self.best is None else asdict(self.best), "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore both."""
        self.best = None if state["best"] is None else EpochResult(**state["best"])
        self.waited = int(state["waited"])
