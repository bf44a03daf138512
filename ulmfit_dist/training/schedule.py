"""A recipe is data: phases run one after the other on one learner."""

from __future__ import annotations

from collections.abc import Sequence

import fastai.callback.schedule  # noqa: F401  gives Learner its fit_one_cycle()

from ulmfit_dist.config.schema import Phase
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.training.train_state import START, RecipePosition


def run_phases(learner: DistributedLearner, phases: Sequence[Phase], begin: RecipePosition = START) -> None:
    """Each phase is fastai's `freeze_to` and `fit_one_cycle`, as a notebook would call them.

    Args:
        begin: where to go on; what is before it is taken for done.
    """
    learner.stage_epoch, learner.stage_step = begin.stage_epoch(phases), begin.stage_step
    learner.first_epoch, learner.first_step = begin.epoch, begin.step
    for number, phase in list(enumerate(phases))[begin.phase :]:
        learner.phase = number
        learner.freeze_to(phase.freeze_to)
        learner.fit_one_cycle(phase.epochs, learning_rate(phase), **shape_of_cycle(phase))
        if learner.is_stopped:
            return


def learning_rate(phase: Phase) -> float | slice:
    """One rate for all layer groups, or a slice that fastai spreads over them geometrically."""
    if not isinstance(phase.lr, list):
        return float(phase.lr)
    return slice(*map(float, phase.lr)) if len(phase.lr) == 2 else float(phase.lr[0])


def shape_of_cycle(phase: Phase) -> dict[str, float]:
    """What a phase says of its one-cycle schedule; the rest is as fastai has it."""
    said = {"pct_start": phase.pct_start, "div": phase.div}
    return {name: value for name, value in said.items() if value is not None}
