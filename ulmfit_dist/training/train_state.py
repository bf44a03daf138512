"""Where in its recipe a stage stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ulmfit_dist.config.schema import Phase


@dataclass(frozen=True)
class RecipePosition:
    """What is to be done next.

    Attributes:
        phase, epoch, step: the next step: number of its phase, its epoch within the phase, its place within the epoch. After
            the last step of an epoch, its validation is next.
        stage_step: optimizer steps of the stage so far, over all phases.
    """

    phase: int = 0
    epoch: int = 0
    step: int = 0
    stage_step: int = 0

    def stage_epoch(self, phases: Sequence[Phase]) -> int:
        """Epochs of the stage so far, over all phases."""
        return sum(phase.epochs for phase in phases[: self.phase]) + self.epoch

    def is_end(self, phases: Sequence[Phase]) -> bool:
        """Whether the recipe is done."""
        return self.phase >= len(phases)

    @classmethod
    def from_json(cls, content: Any) -> RecipePosition:
        """Raises ValueError for what is no position."""
        names = ("phase", "epoch", "step", "stage_step")
        if not isinstance(content, dict) or not all(type(content.get(name)) is int and content[name] >= 0 for name in names):
            raise ValueError(f"not a position: {str(content)[:100]}")
        return cls(**{name: content[name] for name in names})


START = RecipePosition()
