"""Orders of all callbacks of this package, in one place.

fastai sorts callbacks by `order` at every event, lower ones first; callbacks of equal order run as they were added. fastai's
own: `TrainEvalCallback` -10, `ModelResetter` and `RNNCallback` 0, `ParamScheduler` 60. User-defined callbacks have 0 by
default; those with a `state_dict` must stay below `CHECKPOINT`.
"""

from __future__ import annotations

from enum import IntEnum


class CallbackOrder(IntEnum):
    """Orders of callbacks, each with the reason of its position.

    Names of equal value are aliases: callbacks that never meet, or whose relative order does not matter.
    """

    EPOCH_COUNTER = -20
    """Before all others: the order of the documents is set before any callback reads the loader."""
    ACCELERATE = -5
    """After fastai's `TrainEvalCallback`, which moves the model to its device; before those that read the wrapped model."""
    EVALUATION = -4
    """Before all that read `valid_metrics` after a validation."""
    LR_FINDER = 60
    """In the position of fastai's `ParamScheduler`, which it replaces."""
    TRACKING = 80
    """After schedules and user-defined callbacks, whose changes to rates and gradients it logs."""
    EPOCH_TABLE = 80
    """As `TRACKING`, which it replaces in a notebook."""
    PROGRESS = 81
    """After `TRACKING`, whose loss and elapsed time it shows."""
    MODEL_SELECTION = 85
    """After `TRACKING`, whose tables it keeps; before `CHECKPOINT`, which saves its decision."""
    CHECKPOINT = 90
    """After all callbacks with a `state_dict`: their sums include the completed step."""
    RESUME_EPOCH = 90
    """After all callbacks that begin an epoch, which it moves to its middle. `CHECKPOINT` does nothing there."""
    TIMING = 95
    """After `CHECKPOINT`: the time of each callback belongs to the part of the step in which it runs."""
    STEP_TIMER = 97
    """After all work of a step, which it measures for an estimate."""
    STEP_LIMIT = 100
    """Last: it ends the fit of a check after some steps."""
