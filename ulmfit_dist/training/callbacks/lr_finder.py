"""The learning rate range test (Smith, 2017), as fastai's `lr_find`, on any number of ranks.

fastai's own reads the loss from a Recorder, which is the loss of one rank, and keeps the weights in a file meanwhile. Here a
step's loss is that of the global batch, so all ranks stop after the same step and suggest the same rates; weights, optimizer
and train state are kept in memory and restored at the end. Trade-off: a second copy of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from fastai.callback.schedule import SuggestionMethod
from matplotlib.axes import Axes

from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.training.callbacks.order import CallbackOrder

SMOOTHING = 0.98
"""Decay rate of the smoothed loss per step, as in fastai's `Recorder`."""
DIVERGED = 4
"""Ratio of the smoothed loss to its minimum at which the test ends, as in fastai."""
METHODS: dict[str, Callable[..., Any]] = {
    "valley": SuggestionMethod.Valley,
    "steep": SuggestionMethod.Steep,
    "minimum": SuggestionMethod.Minimum,
}
"""fastai's suggestion methods by name; the first is its default."""


@dataclass(frozen=True)
class LRFinderResult:
    """Result of a range test, one value per step.

    Attributes:
        rates: learning rates of the last layer group.
        losses: losses of the global batches.
        smoothed: exponential moving average of the losses, debiased.
        num_steps: planned steps; the test ends earlier if the loss diverges.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    num_steps: int

    def suggest(self, method: Callable[..., Any]) -> float:
        """Return the rate that one of fastai's methods suggests, without the first tenth and the last five steps, as there.

        Raises:
            UserError: too few steps before the loss diverged.
        """
        kept = slice(self.num_steps // 10, -5)
        if len(self.rates[kept]) < 2:
            raise UserError(
                f"the loss diverged after {len(self.rates)} of {self.num_steps} steps, which is too early for a suggestion: "
                f"start at a lower rate (--start), or make more steps (--steps)"
            )
        return float(method(torch.tensor(self.rates[kept]), torch.tensor(self.smoothed[kept]), self.num_steps)[0])

    def suggestions(self) -> dict[str, float]:
        """Return the rate that each of `METHODS` suggests, by name."""
        return {name: self.suggest(method) for name, method in METHODS.items()}

    def draw(self, axes: Axes) -> None:
        """Plot the smoothed loss over the learning rate, without the last five steps as in fastai, and the suggestions."""
        axes.plot(self.rates[:-5], self.smoothed[:-5], color="black", linewidth=1)
        for number, (name, rate) in enumerate(self.suggestions().items()):
            nearest = min(range(len(self.rates)), key=lambda i: abs(self.rates[i] - rate))
            axes.plot(rate, self.smoothed[nearest], "o", color=f"C{number}", label=f"{name} {rate:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss")
        axes.legend()


class RateRangeCallback(Callback):
    """Increases the rate exponentially from step to step, and ends the fit after the last step, or when the loss diverges.

    Args:
        start, end: learning rates of the last layer group.
        num_steps: steps from start to end.
        spread: ratio of the first layer group's rate to the last one's; rates between are interpolated geometrically.
        stop_diverged: whether to end when the loss diverges.
        runtime: reduces the loss over the ranks.
    """

    order, run_valid = CallbackOrder.LR_FINDER, False

    def __init__(self, start: float, end: float, num_steps: int, spread: float, stop_diverged: bool, runtime: Runtime):
        self.start, self.end, self.num_steps, self.spread = start, end, num_steps, spread
        self.stop_diverged, self.runtime = stop_diverged, runtime
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.average = 0.0

    def before_batch(self) -> None:
        rate = self.start * (self.end / self.start) ** (len(self.rates) / self.num_steps)
        self.learn.opt.set_hyper("lr", slice(rate * self.spread, rate))
        self.rates.append(rate)

    def after_batch(self) -> None:
        weight = sum(batch.weight for batch in self.learn.micro_batches)  # this rank's share of the global batch
        self.losses.append(self.runtime.all_reduce_sum(self.learn.loss.double() * weight).item())
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * self.losses[-1]
        self.smoothed.append(self.average / (1 - SMOOTHING ** len(self.losses)))
        if not math.isfinite(self.losses[-1]):
            for values in (self.rates, self.losses, self.smoothed):
                values.pop()
            raise CancelFitException()
        is_diverged = self.stop_diverged and self.smoothed[-1] > DIVERGED * min(self.smoothed)
        if is_diverged or len(self.rates) >= self.num_steps:
            raise CancelFitException()

    def after_train(self) -> None:
        raise CancelEpochException()  # no validation


def range_test(
    learner: Any,
    start: float = 1e-7,
    end: float = 10,
    num_steps: int = 100,
    spread: float = 1.0,
    stop_diverged: bool = True,
) -> LRFinderResult:
    """Train with increasing rates, then restore the learner. Collective.

    Args:
        learner: a `DistributedLearner`; frozen layer groups stay frozen.
        start, end, num_steps, spread, stop_diverged: as in `RateRangeCallback`.
    """
    runtime: Runtime = learner.accelerate.runtime
    callback = RateRangeCallback(start, end, num_steps, spread, stop_diverged, runtime)
    with unchanged(learner), learner.added_cbs(callback):
        learner.fit(num_steps // len(learner.dls.train) + 1)
    runtime.reset_grad_scaler()
    return LRFinderResult(callback.rates, callback.losses, callback.smoothed, num_steps)


@contextmanager
def unchanged(learner: Any) -> Iterator[None]:
    """Restore weights, buffers, optimizer and train state of a learner at the end of a block."""
    if learner.opt is None:
        learner.create_opt()
    model, optimizer = deepcopy(learner.model.state_dict()), deepcopy(learner.opt.state_dict())
    train_state, epoch = learner.train_state, learner.epoch
    learner.train_state = replace(train_state, first_epoch=0, first_step=0)
    try:
        yield
    finally:
        if learner.accelerate.wrapped:  # an error has ended the fit before the modules were unwrapped
            learner.accelerate.after_fit()
        learner.model.load_state_dict(model)
        learner.opt.load_state_dict(optimizer)
        learner.train_state, learner.epoch = train_state, epoch


def suggested(methods: Callable[..., Any] | Sequence[Callable[..., Any]], result: LRFinderResult) -> dict[str, float]:
    """Return the rates that some of fastai's methods suggest, by the method's name."""
    as_list = [methods] if callable(methods) else list(methods)
    return {getattr(method, "func", method).__name__: result.suggest(method) for method in as_list}
