"""Which learning rate: a range test of a stage, and nothing of the run is touched but two files of its own."""

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
    """A range test at a stage's beginning, of what its first phase trains and as its rates are spread over the layers.

    Callbacks of the config are left out: they may count on a validation, and change rates themselves.
    Rank 0 writes `lr_find_<stage>.jsonl` and `lr_find_<stage>.png` to the run directory.

    Args:
        stage: "lm", or "classifier" on the run's language model.
        start, end, num_steps: learning rates of the last layer group, and the steps from the one to the other.

    Raises:
        UserError: rates or steps that make no range; what the stage itself refuses; a loss that grows at once.
    """
    if not 0 < start < end or num_steps < 20:
        raise UserError(f"--start {start} --end {end} --steps {num_steps}: give rates 0 < start < end and at least 20 steps")
    store = prepare(config, runtime)
    with runtime.fail_together():
        if stage == "classifier":
            is_exported(config, "lm", store)
        make: Callable[[Config, Runtime, TokenStore], DistributedLearner]
        make = lm_learner if stage == "lm" else classifier_learner
        alone = replace(config, **{stage: replace(getattr(config, stage), callbacks=[])})
        learner = make(alone, runtime, store)
    phase = getattr(config, stage).phases[0]
    learner.freeze_to(phase.freeze_to)
    found = range_test(learner, start, end, num_steps, _spread(phase))
    found.suggestions()  # refuses what has none, on every rank
    with runtime.fail_together():
        if runtime.is_main:
            write_range(found, config.run_dir, stage)
    return found


def describe_range(found: LRFinderResult, config: Config, stage: str) -> str:
    """What the terminal says of a range test."""
    suggestions = found.suggestions()
    lowest = min(range(len(found.rates)), key=found.smoothed.__getitem__)
    rate = next(iter(suggestions.values()))
    spread = _spread(getattr(config, stage).phases[0])
    shown = f"{rate:.1e}" if spread == 1 else f"[{spread * rate:.1e}, {rate:.1e}]"
    lines = [
        f"{stage}: {len(found.rates)} steps, learning rates from {found.rates[0]:.1e} to {found.rates[-1]:.1e}; "
        f"the smoothed loss falls from {found.smoothed[0]:.4f} to {found.smoothed[lowest]:.4f} at {found.rates[lowest]:.1e}",
        *(f"  {name:<8} {value:.1e}" for name, value in suggestions.items()),
        f"for the first phase, by fastai's default: lr: {shown}",
        f"plot: {plot_path(config.run_dir, stage)}",
    ]
    return "\n".join(lines)


def plot_path(run_dir: Path, stage: str) -> Path:
    return run_dir / f"lr_find_{stage}.png"


def write_range(found: LRFinderResult, run_dir: Path, stage: str) -> None:
    """The values of each step as JSON lines, and the plot. Raises UserError where the folder cannot be written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        names = ("learning_rate", "loss", "smoothed_loss")
        rows = zip(found.rates, found.losses, found.smoothed, strict=True)
        lines = [json.dumps({"step": step, **dict(zip(names, row, strict=True))}) for step, row in enumerate(rows)]
        write_bytes(run_dir / f"lr_find_{stage}.jsonl", "".join(f"{line}\n" for line in lines).encode())
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot(title=f"{stage}: learning rate range test")
        found.draw(axes)
        figure.savefig(plot_path(run_dir, stage), dpi=120)
    except OSError as error:
        raise UserError(f"{run_dir}: cannot be written ({error}): set runs_dir to a folder of yours") from None


def _spread(phase: Phase) -> float:
    """The rate of a phase's first layer group over that of its last."""
    rates = phase.lr if isinstance(phase.lr, list) else [phase.lr]
    return float(rates[0]) / float(rates[-1])
