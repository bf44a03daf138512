"""The stages as a notebook calls them: a config in, an object out."""

from __future__ import annotations

from pathlib import Path

import torch

from ulmfit_dist.config import Config
from ulmfit_dist.data.store import TokenStore
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.stages.cross_validate import Figures, configs_of_folds
from ulmfit_dist.stages.cross_validate import cross_validate as cross_validate_folds
from ulmfit_dist.stages.generate import LanguageModel
from ulmfit_dist.stages.lr_find import find_learning_rate as find_learning_rate_of
from ulmfit_dist.stages.predict import TextClassifier
from ulmfit_dist.stages.prepare import prepare as prepare_stage
from ulmfit_dist.stages.run import run_stage
from ulmfit_dist.training.rate_range import RateRange


def prepare(config: Config) -> TokenStore:
    """The token store of the config's texts, made if it is not there.

    A script must call this below `if __name__ == "__main__":`, for worker processes import the script.
    """
    return prepare_stage(config, Runtime(config.runtime))


def train_lm(config: Config, fresh: bool = False) -> LanguageModel:
    """Train the language model; it is in `runs/<name>/lm` afterwards. What was interrupted goes on, unless `fresh`."""
    run_stage(config, _runtime(config, fresh), "lm", fresh)
    return LanguageModel(config.run_dir, trust_rules=True)


def train_classifier(config: Config, fresh: bool = False) -> TextClassifier:
    """As `train_lm`, for the classifier on the run's language model; it is in `runs/<name>/classifier` afterwards."""
    run_stage(config, _runtime(config, fresh), "classifier", fresh)
    return TextClassifier(config.run_dir, trust_rules=True)


def cross_validate(config: Config, fresh: bool = False) -> Figures:
    """Train a run for each of `data.folds`; mean, std and the values of the folds by stage and metric."""
    return cross_validate_folds(config, _runtime(configs_of_folds(config)[0], fresh), fresh)


def find_learning_rate(config: Config, stage: str = "lm", **range: float) -> RateRange:
    """A learning rate range test of a stage: `.suggestions()` gives rates, `.draw(axes)` the plot.

    Args:
        range: `start`, `end` and `num_steps`, where they are not to be 1e-7, 10 and 100.
    """
    return find_learning_rate_of(config, _runtime(config, fresh=False), stage, **range)  # type: ignore[arg-type]


def load_classifier(folder: str | Path, device: torch.device | str = "cpu", trust_rules: bool = False) -> TextClassifier:
    """An exported classifier: `.predict(list_of_str)` gives labels and probabilities."""
    return TextClassifier(folder, device, trust_rules)


def load_language_model(folder: str | Path, device: torch.device | str = "cpu", trust_rules: bool = False) -> LanguageModel:
    """An exported language model: `.generate(prompt)` gives texts."""
    return LanguageModel(folder, device, trust_rules)


def _runtime(config: Config, fresh: bool) -> Runtime:
    return Runtime(config.runtime, run_dir=None if fresh else config.run_dir)
