"""The phases of a recipe, one after the other on one learner.

Each phase is fastai's `freeze_to` and `fit_one_cycle`, so a recipe is data and a notebook can do the same by two calls.
Trade-off: a phase is one cycle; other schedules need a user-defined callback.
"""

from __future__ import annotations

from collections.abc import Sequence

import fastai.callback.schedule  # noqa: F401  adds fit_one_cycle() to Learner

from ulmfit_dist.config.schema import Phase
from ulmfit_dist.training.learner import DistributedLearner


def run_phases(learner: DistributedLearner, phases: Sequence[Phase]) -> None:
    """Train the phases from the learner's `train_state` on; those before it count as completed."""
    state = learner.train_state
    for number, phase in list(enumerate(phases))[state.phase :]:
        state.phase = number
        learner.freeze_to(phase.freeze_to)
        learner.fit_one_cycle(phase.epochs, learning_rate(phase), **one_cycle_shape(phase))
        if state.is_stopped:
            return


def learning_rate(phase: Phase) -> float | slice:
    """Return one rate for all layer groups, or a slice that fastai spreads over them geometrically."""
    if not isinstance(phase.lr, list):
        return float(phase.lr)
    return slice(*map(float, phase.lr)) if len(phase.lr) == 2 else float(phase.lr[0])


def one_cycle_shape(phase: Phase) -> dict[str, float]:
    """Return the arguments of `fit_one_cycle` that a phase sets; fastai's defaults apply to the others."""
    arguments = {"pct_start": phase.pct_start, "div": phase.div}
    return {name: value for name, value in arguments.items() if value is not None}
