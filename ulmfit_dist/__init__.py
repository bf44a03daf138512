"""ULMFiT, distributed: fastai's language models and text classifiers, trained by Hugging Face Accelerate.

The public names below are imported at their first use, so that `import ulmfit_dist` is fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_PUBLIC = {
    "Runtime": "ulmfit_dist.distributed.runtime",
    "Sampling": "ulmfit_dist.models.sampling",
    "TextOptions": "ulmfit_dist.recipes.dataset_profile",
    "Tokenizer": "ulmfit_dist.data.tokenizers.word",
    "TokenStore": "ulmfit_dist.data.token_store",
    "Tracker": "ulmfit_dist.tracking.tracker",
    "UserError": "ulmfit_dist.errors",
    "baseline": "ulmfit_dist.api",
    "classifier_learner": "ulmfit_dist.api",
    "compare": "ulmfit_dist.api",
    "cross_validate": "ulmfit_dist.api",
    "evaluate": "ulmfit_dist.stages.evaluate",
    "evaluate_ensemble": "ulmfit_dist.stages.evaluate_ensemble",
    "export_to_fastai": "ulmfit_dist.export.fastai",
    "export_to_onnx": "ulmfit_dist.export.onnx",
    "find_learning_rate": "ulmfit_dist.api",
    "init": "ulmfit_dist.api",
    "lm_learner": "ulmfit_dist.api",
    "load_classifier": "ulmfit_dist.inference.loading",
    "load_config": "ulmfit_dist.config.loading",
    "load_ensemble": "ulmfit_dist.api",
    "load_language_model": "ulmfit_dist.inference.loading",
    "predict_file": "ulmfit_dist.inference.predict_file",
    "prepare": "ulmfit_dist.api",
    "push": "ulmfit_dist.export.hub_push",
    "run": "ulmfit_dist.api",
    "save_ensemble": "ulmfit_dist.stages.save_ensemble",
    "self_train": "ulmfit_dist.api",
    "show_batch": "ulmfit_dist.api",
    "show_results": "ulmfit_dist.api",
    "train_classifier": "ulmfit_dist.api",
    "train_lm": "ulmfit_dist.api",
    "with_texts": "ulmfit_dist.api",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ulmfit_dist' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
