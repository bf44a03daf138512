"""The callback that says where the time of a step goes."""

from __future__ import annotations

from fastai.callback.core import Callback

from ulmfit_dist.distributed.runtime import Runtime


class TimingCallback(Callback):
    """Ends the laps of `runtime.laps` as a step goes on; what waits for other ranks ends its own there."""

    order, run_valid = 95, False  # after all others: what they do belongs to the lap that they do it in

    def __init__(self, runtime: Runtime):
        self.laps = runtime.laps

    def before_train(self) -> None:
        self.laps.start()

    def before_batch(self) -> None:
        self.laps.end("data")

    def after_loss(self) -> None:
        self.laps.end("forward")

    def after_backward(self) -> None:
        self.laps.end("backward")

    def after_batch(self) -> None:
        self.laps.end("optimizer")

    def after_train(self) -> None:
        self.laps.stop()

    def after_cancel_train(self) -> None:
        self.laps.stop()
