"""Callbacks of the user's own, from the import paths in a config, on the learner of every rank."""

from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback
from fastai.learner import Learner

from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.imports import import_path, path_and_arguments

INSTEAD = {
    "EarlyStoppingCallback": "early_stopping_patience",
    "SaveModelCallback": "select=best",
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
"""Callbacks of fastai's that need its own loop, Recorder or loaders, and what there is here instead."""

RESERVED = ("tracking", "timing", "selection", "checkpoint", "resume_epoch")
"""Names of callbacks that a stage adds later."""


def add_callbacks(learner: Learner, stage: str, entries: list[Any]) -> None:
    """Add the callbacks of `<stage>.callbacks` to a learner.

    Args:
        entries: `module.Class`, or `{path: module.Class, argument: value, ...}`.

    Raises:
        UserError: no such class, arguments that are not its, a name that the learner has already.
    """
    key = f"{stage}.callbacks"
    for entry in entries:
        path, arguments = path_and_arguments(entry, key)
        callback = _build(path, arguments, key)
        if callback.name in (*RESERVED, *vars(learner)) or hasattr(type(learner), callback.name):
            raise UserError(f"{key}: {path}: the learner has a {callback.name!r} already: give the class another name")
        learner.add_cb(callback)


def check_callbacks(stage: str, entries: list[Any]) -> None:
    """Raise UserError for what `add_callbacks` would refuse, as far as that is known without a learner."""
    for entry in entries:
        _import(path_and_arguments(entry, f"{stage}.callbacks")[0], f"{stage}.callbacks")


def _build(path: str, arguments: dict[str, Any], key: str) -> Callback:
    kind = _import(path, key)
    try:
        callback = kind(**arguments)
    except Exception as error:
        raise UserError(f"{key}: {path} cannot be made ({type(error).__name__}: {error}): check its arguments") from None
    return callback


def _import(path: str, key: str) -> type[Callback]:
    kind = import_path(path, key, "module.Class")
    if not (isinstance(kind, type) and issubclass(kind, Callback)):
        raise UserError(f"{key}: {path} is no class of fastai's Callback")
    if path.startswith("fastai.") and kind.__name__ in INSTEAD:
        raise UserError(f"{key}: {path} needs fastai's own training loop: use {INSTEAD[kind.__name__]}")
    return kind
