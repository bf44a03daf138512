"""Loaders of exported models for the Python API: `load_classifier` and `load_language_model`.

They are not in `api.py`, because that imports all stages, and so the trainer.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ulmfit_dist.inference.generator import LanguageModel
from ulmfit_dist.inference.predictor import TextClassifier


def load_classifier(
    folder: str | Path,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    quantize: str | None = None,
) -> TextClassifier:
    """Return an exported classifier: `.predict(texts)` and `.predict_one(text)` return labels and probabilities.

    Args:
        quantize: "int8" to compute in int8, on CPUs only; None for fp32.
    """
    return TextClassifier(folder, device, trust_remote_code, quantize)


def load_language_model(
    folder: str | Path, device: torch.device | str = "cpu", trust_remote_code: bool = False
) -> LanguageModel:
    """Return an exported language model: `.generate(prompt)` returns texts."""
    return LanguageModel(folder, device, trust_remote_code)
