"""Which epoch's model is exported, and whether training ends before its recipe does.

Both follow from the validation's score after each epoch, and rank 0 decides, so that none trains on while another stops. The
best epoch's weights are in its checkpoint, which is kept anyway; what is known of it is part of each checkpoint, so a run
that was killed selects and stops as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from fastai.callback.core import Callback

from ulmfit_dist.config.schema import StageConfig
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


@dataclass(frozen=True)
class EpochResult:
    """An epoch and what its validation has found.

    Attributes:
        number: of the stage, from 1.
        step: optimizer steps of the stage up to its end, which its checkpoint is named by.
        score: higher is better.
        metrics: of the validation, by name.
        tables: what else is to be seen of it; on rank 0.
    """

    number: int
    step: int
    score: float
    metrics: dict[str, float]
    tables: dict[str, Any]


class ModelSelectionCallback(Callback):
    """Remembers the best epoch, and stops when there was none better for some epochs.

    Of equally good epochs the last is exported, as it is the one whose checkpoint is kept; for patience they are no better.

    Args:
        settings: of the stage.
        tables: what there is to be seen of the last evaluation.

    Attributes:
        best: the best epoch so far.
        waited: epochs since one that was better than all before it.
    """

    order = 85  # after what is logged of an epoch, before its checkpoint

    def __init__(self, settings: StageConfig, tables: Callable[[], dict[str, Any]]):
        self.patience, self.tables = settings.early_stopping_patience, tables
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
            learn.is_stopped = runtime.broadcast_object(self.waited >= self.patience)
            if learn.is_stopped:
                logger.info(f"{learn.stage}: ends here: {self.waited} epoch(s) in a row were no better than the best before")

    def state_dict(self) -> dict[str, Any]:
        """The best epoch and the waiting, as JSON."""
        return {"best": None if self.best is None else asdict(self.best), "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.best = None if state["best"] is None else EpochResult(**state["best"])
        self.waited = int(state["waited"])
