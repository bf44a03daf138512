"""Exported models as Python objects: `load_classifier` and `load_language_model`.

They are functions of the public API in a module of their own, since `api.py` imports all stages, and so the trainer.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ulmfit_dist.inference.generator import LanguageModel
from ulmfit_dist.inference.predictor import TextClassifier


def load_classifier(
    folder: str | Path, device: torch.device | str = "cpu", trust_remote_code: bool = False
) -> TextClassifier:
    """An exported classifier: `.predict(list_of_str)` gives labels and probabilities; `.predict_one(str)` for one text."""
    return TextClassifier(folder, device, trust_remote_code)


def load_language_model(
    folder: str | Path, device: torch.device | str = "cpu", trust_remote_code: bool = False
) -> LanguageModel:
    """An exported language model: `.generate(prompt)` gives texts."""
    return LanguageModel(folder, device, trust_remote_code)
