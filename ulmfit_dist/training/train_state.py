"""The progress of a stage's training: the part of a learner's state that is plain numbers.

One object per learner, passed at its construction; checkpoints save and restore it. Trade-off: fastai's `Learner.epoch` and
`Learner.iter` count within a fit, so the same progress has two counters, and a callback must choose the right one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass
class TrainState:
    """Progress of a stage's training, and where its next fit begins.

    Attributes:
        stage: name of the stage, "lm" or "classifier".
        num_phases: phases of the recipe.
        phase: index of the phase in progress; `num_phases` after the last one.
        stage_epoch: epochs completed over all phases.
        stage_step: optimizer steps completed over all phases.
        first_epoch: epoch at which the next fit begins, within its phase; not 0 after a resume only.
        first_step: step at which the next epoch begins. Equal to the steps of an epoch where its validation is next.
        is_stopped: whether the stage ends with the epoch that has just ended.
    """

    stage: str
    num_phases: int = 0
    phase: int = 0
    stage_epoch: int = 0
    stage_step: int = 0
    first_epoch: int = 0
    first_step: int = 0
    is_stopped: bool = False

    @property
    def is_finished(self) -> bool:
        """Return whether all phases are completed."""
        return self.phase >= self.num_phases

    def to_json(self) -> dict[str, Any]:
        """Return the state as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> TrainState:
        """Return the state of a JSON object. Raises ValueError for any other content."""
        types = {field.name: type(field.default) for field in fields(cls)} | {"stage": str}
        if not isinstance(content, dict) or any(type(content.get(name)) is not types[name] for name in types):
            raise ValueError(f"not a train state: {str(content)[:100]}")
        if any(content[name] < 0 for name in types if types[name] is int):
            raise ValueError(f"not a train state: {str(content)[:100]}")
        return cls(**{name: content[name] for name in types})
