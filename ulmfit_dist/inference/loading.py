"""Loaders of exported models for the Python API: `load_classifier` and `load_language_model`.

They are not in `api.py`, because that imports all stages, and so the trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ulmfit_dist.distributed.collectives import Collectives, OneProcess
from ulmfit_dist.distributed.env import num_processes
from ulmfit_dist.inference.generator import LanguageModel
from ulmfit_dist.inference.predictor import TextClassifier
from ulmfit_dist.inference.saved_ensemble import SavedEnsemble, open_classifier
from ulmfit_dist.pretrained.hub import is_hub_model, model_path, model_paths


def load_classifier(
    folder: str | Path,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    quantize: str | None = None,
) -> TextClassifier | SavedEnsemble:
    """Return an exported classifier: `.predict(texts)` and `.predict_one(text)` return labels and probabilities.

    Args:
        folder: a run directory, which may be that of an ensemble, its `classifier/`, or `hf:USER/NAME`, a model of the
            Hugging Face hub.
        quantize: "int8" to compute in int8, on CPUs only; None for fp32.
    """
    return open_classifier(model_path(folder), device, trust_remote_code, quantize)


def load_language_model(
    folder: str | Path, device: torch.device | str = "cpu", trust_remote_code: bool = False
) -> LanguageModel:
    """Return an exported language model: `.generate(prompt)` returns texts.

    Args:
        folder: a run directory, its `lm/`, or `hf:USER/NAME`, a model of the Hugging Face hub.
    """
    return LanguageModel(folder, device, trust_remote_code)


def model_folders(runs: Sequence[str | Path], ranks: Collectives | None = None) -> list[Path]:
    """Return the folders of models that are named by paths or as `hf:USER/NAME`. Collective.

    Args:
        ranks: None before the ranks have met: they then meet for this call, if a model is one of the hub.
    """
    if ranks is not None:
        return model_paths(runs, ranks)
    if num_processes() == 1 or not any(map(is_hub_model, runs)):
        return model_paths(runs, OneProcess())
    from ulmfit_dist.config.schema import RuntimeConfig
    from ulmfit_dist.distributed.runtime import Runtime

    with Runtime(RuntimeConfig(precision="fp32"), keeps_group=True) as runtime:
        return model_paths(runs, runtime)
