"""The stages as a notebook calls them: a config in, an object out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ulmfit_dist.config import Config
from ulmfit_dist.data.store import TokenStore
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.stages.ensemble import Ensemble
from ulmfit_dist.stages.generate import LanguageModel
from ulmfit_dist.stages.predict import TextClassifier
from ulmfit_dist.stages.prepare import prepare as prepare_stage
from ulmfit_dist.stages.run import run_stage


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


def load_classifier(folder: str | Path, device: torch.device | str = "cpu", trust_rules: bool = False) -> TextClassifier:
    """An exported classifier: `.predict(list_of_str)` gives labels and probabilities; `.predict_one(str)` for one text."""
    return TextClassifier(folder, device, trust_rules)


def load_ensemble(folders: Sequence[str | Path], device: torch.device | str = "cpu", trust_rules: bool = False) -> Ensemble:
    """Exported classifiers with the same labels, as one that gives the mean of their probabilities."""
    return Ensemble(folders, device, trust_rules)


def load_language_model(folder: str | Path, device: torch.device | str = "cpu", trust_rules: bool = False) -> LanguageModel:
    """An exported language model: `.generate(prompt)` gives texts."""
    return LanguageModel(folder, device, trust_rules)


def _runtime(config: Config, fresh: bool) -> Runtime:
    return Runtime(config.runtime, run_dir=None if fresh else config.run_dir)
