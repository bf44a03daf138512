"""The callback that says where the time of a step goes."""

from __future__ import annotations

from fastai.callback.core import Callback

from ulmfit_dist.distributed.runtime import Runtime


class TimingCallback(Callback):
    """Ends the laps of `runtime.step_timer` as a step goes on; what waits for other ranks ends its own there."""

    order, run_valid = 95, False  # after all others: what they do belongs to the lap that they do it in

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
