"""The callback that attributes the time of a step to its parts.

Trade-off: a part ends where the next callback event begins, so the time of a callback counts as the part that it runs in.
"""

from __future__ import annotations

from fastai.callback.core import Callback

from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.training.callbacks.order import CallbackOrder


class TimingCallback(Callback):
    """Ends the intervals of `runtime.step_timer` during a step; collectives end their own."""

    order, run_valid = CallbackOrder.TIMING, False

    def __init__(self, runtime: Runtime):
        self.step_timer = runtime.step_timer

    def before_train(self) -> None:
        self.step_timer.start()

    def before_batch(self) -> None:
        self.step_timer.end("data")

    def after_loss(self) -> None:
        self.step_timer.end("forward")

    def after_backward(self) -> None:
        self.step_timer.end("backward")

    def after_batch(self) -> None:
        self.step_timer.end("optimizer")

    def after_train(self) -> None:
        self.step_timer.stop()

    def after_cancel_train(self) -> None:
        self.step_timer.stop()
