"""User-defined callbacks, from the import paths in a config, on the learner of every rank.

fastai's own callbacks work as far as they need neither its training loop nor its `Recorder`; the others are refused with the
key that replaces them. Trade-off: a list of names, which a new version of fastai may extend.
"""

from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback
from fastai.learner import Learner

from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.imports import import_path, path_and_arguments

REPLACEMENTS = {
    "EarlyStoppingCallback": "early_stopping_patience",
    "SaveModelCallback": "export_epoch=best",
    "ReduceLROnPlateau": "phases",
    "CSVLogger": "the run's metrics.jsonl",
    "ShowGraphCallback": "the run's report.html",
    "WandbCallback": "tracking.wandb_mode",
    "GradientClip": "grad_clip",
    "GradientAccumulation": "runtime.micro_batch_size",
    "MixedPrecision": "runtime.precision",
    "NonNativeMixedPrecision": "runtime.precision",
    "DistributedTrainer": "accelerate launch",
    "Recorder": "the run's metrics.jsonl",
    "LRFinder": "ulmfit-dist lr-find",
}
"""Callbacks of fastai that need its own loop, Recorder or loaders, with their replacements here."""

RESERVED = ("tracking", "stage_progress", "timing", "model_selection", "checkpoint", "resume_epoch")
"""Names of callbacks that a stage adds after the user-defined ones."""


def add_callbacks(learner: Learner, stage: str, entries: list[Any]) -> None:
    """Add the callbacks of `<stage>.callbacks` to a learner.

    Args:
        entries: `module.Class`, or `{path: module.Class, argument: value, ...}`.

    Raises:
        UserError: no such class, wrong arguments, or a name that the learner already has.
    """
    key = f"{stage}.callbacks"
    for entry in entries:
        path, arguments = path_and_arguments(entry, key)
        callback = _build(path, arguments, key)
        if callback.name in (*RESERVED, *vars(learner)) or hasattr(type(learner), callback.name):
            raise UserError(f"{key}: {path}: the learner already has a {callback.name!r}: give the class another name")
        learner.add_cb(callback)


def check_callbacks(stage: str, entries: list[Any]) -> None:
    """Raise UserError for entries that are not fastai callbacks, or need fastai's training loop."""
    for entry in entries:
        _import(path_and_arguments(entry, f"{stage}.callbacks")[0], f"{stage}.callbacks")


def _build(path: str, arguments: dict[str, Any], key: str) -> Callback:
    callback_class = _import(path, key)
    try:
        return callback_class(**arguments)
    except Exception as error:
        raise UserError(f"{key}: {path} cannot be created ({type(error).__name__}: {error}): check its arguments") from None


def _import(path: str, key: str) -> type[Callback]:
    callback_class = import_path(path, key, "module.Class")
    if not (isinstance(callback_class, type) and issubclass(callback_class, Callback)):
        raise UserError(
            f"{key}: {path} is not a subclass of fastai's Callback: derive it from fastai.callback.core.Callback"
        )
    if path.startswith("fastai.") and callback_class.__name__ in REPLACEMENTS:
        raise UserError(f"{key}: {path} needs fastai's own training loop: use {REPLACEMENTS[callback_class.__name__]}")
    return callback_class
