"""Accuracy of the mean of runs, and of the linear model, on the test reviews of `few_labels`.

It reads the predictions that the runs have written, so it takes seconds. Temperatures are fitted to valid, with a prior, as
in an ensemble run. N: documents, C: classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.data.prediction_table import read_predictions
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.inference.temperature import LOG_DEVIATION, fit_temperature, scale_answers
from ulmfit_dist.stages.baseline import baseline_answers
from ulmfit_dist.stages.prepare import prepare

Answers = dict[str, Tensor]
"""Probabilities of the classes, float64 [N, C], of the valid and the test split."""


def linear_answers(path: Path, overrides: Sequence[str]) -> Answers:
    """Return the answers of the linear model of a config; they are written to a file, and read from it if it is there."""
    if not path.exists():
        config = load_config(None, overrides)
        with Runtime(config.runtime) as runtime:
            _, _, answers, _ = baseline_answers(config, runtime, prepare(config, runtime))
        save_file({side: torch.from_numpy(part) for side, part in answers.items()}, path)
    return load_file(path)


def accuracy(runs: Sequence[Path], linear: Answers | None) -> float:
    """Return the accuracy of the mean of runs, and of a linear model, on the test split."""
    splits = [read_predictions(run).splits for run in runs]
    y = {side: torch.from_numpy(splits[0][side].y) for side in ("valid", "test")}
    members = [{side: torch.from_numpy(part[side].answers) for side in y} for part in splits]
    if linear is not None:
        members.append(linear)
    temperatures = [fit_temperature(part["valid"], y["valid"], "category", LOG_DEVIATION) for part in members]
    scaled = [scale_answers(part["test"], t, "category") for part, t in zip(members, temperatures, strict=True)]
    return float((torch.stack(scaled).mean(0).argmax(1) == y["test"]).double().mean())
