"""Learning rate finder: a range test of a stage.

The test writes only its own two files to the run directory. Trade-off: it suggests one rate for the first phase, measured
with the rate ratios between layer groups of that phase.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure

from ulmfit_dist.config.schema import Config, Phase
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.classifier import classifier_learner
from ulmfit_dist.stages.lm import lm_learner
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.run import is_exported
from ulmfit_dist.training.callbacks.lr_finder import LRFinderResult, range_test
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.utils.files import write_bytes


def find_learning_rate(
    config: Config, runtime: Runtime, stage: str, start: float = 1e-7, end: float = 10, num_steps: int = 100
) -> LRFinderResult:
    """Run a range test from the start of a stage, with the frozen layers and rate ratios of its first phase.

    Callbacks of the config are not used: they may need a validation or change learning rates. Rank 0 writes
    `lr_find_<stage>.jsonl` and `lr_find_<stage>.png` to the run directory.

    Args:
        stage: "lm", or "classifier" on the run's language model.
        start, end: first and last learning rate of the last layer group.
        num_steps: steps from the first to the last rate.

    Raises:
        UserError: invalid rates or steps, invalid input of the stage, or a loss that only increases.
    """
    if not 0 < start < end or num_steps < 20:
        raise UserError(f"--start {start} --end {end} --steps {num_steps}: give rates 0 < start < end and at least 20 steps")
    store = prepare(config, runtime)
    with runtime.fail_together():
        if stage == "classifier":
            is_exported(config, "lm", store)
        make: Callable[[Config, Runtime, TokenStore], DistributedLearner]
        make = lm_learner if stage == "lm" else classifier_learner
        learner = make(replace(config, **{stage: replace(getattr(config, stage), callbacks=[])}), runtime, store)
    phase = getattr(config, stage).phases[0]
    learner.freeze_to(phase.freeze_to)
    result = range_test(learner, start, end, num_steps, _rate_ratio(phase))
    result.suggestions()  # raises UserError on every rank if there is none
    with runtime.fail_together():
        if runtime.is_main:
            write_range(result, config.run_dir, stage)
    return result


def describe_range(result: LRFinderResult, config: Config, stage: str) -> str:
    """Return the suggestions of a range test as text."""
    suggestions = result.suggestions()
    lowest = min(range(len(result.rates)), key=result.smoothed.__getitem__)
    rate = next(iter(suggestions.values()))
    ratio = _rate_ratio(getattr(config, stage).phases[0])
    shown = f"{rate:.1e}" if ratio == 1 else f"[{ratio * rate:.1e}, {rate:.1e}]"
    lines = [
        f"{stage}: {len(result.rates)} steps, learning rates from {result.rates[0]:.1e} to {result.rates[-1]:.1e}; "
        f"the smoothed loss falls from {result.smoothed[0]:.4f} to {result.smoothed[lowest]:.4f} "
        f"at {result.rates[lowest]:.1e}",
        *(f"  {name:<8} {value:.1e}" for name, value in suggestions.items()),
        f"for the first phase, by fastai's default: lr: {shown}",
        f"plot: {plot_path(config.run_dir, stage)}",
    ]
    return "\n".join(lines)


def plot_path(run_dir: Path, stage: str) -> Path:
    """Return the path of the plot of a stage."""
    return run_dir / f"lr_find_{stage}.png"


def write_range(result: LRFinderResult, run_dir: Path, stage: str) -> None:
    """Write the values of each step as JSON lines, and the plot. Raises UserError if the folder is not writable."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        names = ("learning_rate", "loss", "smoothed_loss")
        rows = zip(result.rates, result.losses, result.smoothed, strict=True)
        lines = [json.dumps({"step": step, **dict(zip(names, row, strict=True))}) for step, row in enumerate(rows)]
        write_bytes(run_dir / f"lr_find_{stage}.jsonl", "".join(f"{line}\n" for line in lines).encode())
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot(title=f"{stage}: learning rate range test")
        result.draw(axes)
        figure.savefig(plot_path(run_dir, stage), dpi=120)
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written ({error}): set runs_dir to a writable folder") from None


def _rate_ratio(phase: Phase) -> float:
    """Return the learning rate of a phase's first layer group over that of its last."""
    rates = phase.lr if isinstance(phase.lr, list) else [phase.lr]
    return float(rates[0]) / float(rates[-1])
