"""The learning rate range test (Smith, 2017), as fastai's `lr_find`, on any number of ranks.

fastai's own asks a Recorder for the loss, which is then a rank's, and keeps the weights in a file meanwhile. Here a step's
loss is that of the global batch, so all ranks stop after the same step and suggest the same rates; weights, optimizer and
position are kept in memory, and are back at the end. The price: a second copy of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from fastai.callback.schedule import SuggestionMethod
from matplotlib.axes import Axes

from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError

SMOOTHING = 0.98
"""Weight of the past in the smoothed loss, as in fastai's `Recorder`."""
DIVERGED = 4
"""The test ends when the smoothed loss is so many times the lowest one, as in fastai."""
METHODS: dict[str, Callable[..., Any]] = {
    "valley": SuggestionMethod.Valley,
    "steep": SuggestionMethod.Steep,
    "minimum": SuggestionMethod.Minimum,
}
"""fastai's, by the names that it gives them; the first is its default."""


@dataclass(frozen=True)
class LRFinderResult:
    """What a range test has found, a value per step.

    Attributes:
        rates: learning rates of the last layer group.
        losses: of the global batches.
        smoothed: losses with a past that fades.
        num_steps: that were planned; fewer were made if the loss grew too much.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    num_steps: int

    def suggest(self, method: Callable[..., Any]) -> float:
        """A rate, by one of fastai's methods, from what fastai gives it: without the first tenth and the last five steps.

        Raises:
            UserError: too few steps for one.
        """
        kept = slice(self.num_steps // 10, -5)
        if len(self.rates[kept]) < 2:
            raise UserError(
                f"the loss grew too much within {len(self.rates)} of {self.num_steps} steps: begin with a lower rate "
                f"(--start), or make more steps (--steps)"
            )
        return float(method(torch.tensor(self.rates[kept]), torch.tensor(self.smoothed[kept]), self.num_steps)[0])

    def suggestions(self) -> dict[str, float]:
        """A rate by each of `METHODS`."""
        return {name: self.suggest(method) for name, method in METHODS.items()}

    def draw(self, axes: Axes) -> None:
        """The smoothed loss by learning rate, as fastai draws it without the last five steps, and the suggestions."""
        axes.plot(self.rates[:-5], self.smoothed[:-5], color="black", linewidth=1)
        for number, (name, rate) in enumerate(self.suggestions().items()):
            nearest = min(range(len(self.rates)), key=lambda i: abs(self.rates[i] - rate))
            axes.plot(rate, self.smoothed[nearest], "o", color=f"C{number}", label=f"{name} {rate:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss")
        axes.legend()


class RateRangeCallback(Callback):
    """Raises the rate exponentially from step to step, and ends the fit after the last step, or when the loss diverges.

    Args:
        start, end: learning rates of the last layer group.
        num_steps: from the one to the other.
        spread: rate of the first layer group over that of the last; those between lie between, geometrically.
        stop_diverged: whether to end early.
        runtime: of all ranks, which together know the loss.
    """

    order, run_valid = 60, False

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
        weight = sum(batch.weight for batch in self.learn.micro_batches)  # of this rank in the global batch
        self.losses.append(self.runtime.all_reduce_sum(self.learn.loss.double() * weight).item())
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * self.losses[-1]
        self.smoothed.append(self.average / (1 - SMOOTHING ** len(self.losses)))
        if not math.isfinite(self.losses[-1]):
            for found in (self.rates, self.losses, self.smoothed):
                found.pop()
            raise CancelFitException()
        is_diverged = self.stop_diverged and self.smoothed[-1] > DIVERGED * min(self.smoothed)
        if is_diverged or len(self.rates) >= self.num_steps:
            raise CancelFitException()

    def after_train(self) -> None:
        raise CancelEpochException()  # nothing is validated


def range_test(
    learner: Any,
    start: float = 1e-7,
    end: float = 10,
    num_steps: int = 100,
    spread: float = 1.0,
    stop_diverged: bool = True,
) -> LRFinderResult:
    """Train with ever higher rates, then put the learner back to where it was. Collective.

    Args:
        learner: a `DistributedLearner`; what it has frozen stays so.
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
    """Put weights, buffers, optimizer and position of a learner back at the end of a block."""
    if learner.opt is None:
        learner.create_opt()
    model, optimizer = deepcopy(learner.model.state_dict()), deepcopy(learner.opt.state_dict())
    names = ("stage_epoch", "stage_step", "first_epoch", "first_step", "epoch")
    position = {name: getattr(learner, name) for name in names}
    learner.first_epoch, learner.first_step = 0, 0
    try:
        yield
    finally:
        if learner.accelerate.wrapped:  # an error has ended the fit before the modules were bare again
            learner.accelerate.after_fit()
        learner.model.load_state_dict(model)
        learner.opt.load_state_dict(optimizer)
        for name, value in position.items():
            setattr(learner, name, value)


def suggested(methods: Callable[..., Any] | Sequence[Callable[..., Any]], found: LRFinderResult) -> dict[str, float]:
    """A rate by each of some methods of fastai's, by the method's name."""
    in_a_list = [methods] if callable(methods) else list(methods)
    return {getattr(method, "func", method).__name__: found.suggest(method) for method in in_a_list}
