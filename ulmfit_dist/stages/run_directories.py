"""Checks that a run directory holds one kind of run: a training, an ensemble, or a self-training.

Trade-off: the kind shows in the files, so a directory without any is free for all kinds.
"""

from __future__ import annotations

from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.ensemble_file import KINDS, is_ensemble, read_ensemble

SELF_TRAINING = "self_training.json"
"""File of a self-training: its rounds and their figures."""
STAGES = ("lm", "classifier")


def check_free_for_training(config: Config) -> None:
    """Raise UserError if the run directory holds an ensemble or a self-training."""
    run = config.run_dir
    if is_ensemble(run):
        command = KINDS[read_ensemble(run).kind]
        raise UserError(f"{run} holds an ensemble ({command}): give this run another name, such as name={config.name}-2")
    if (run / SELF_TRAINING).is_file():
        raise UserError(f"{run} holds a self-training: give this run another name, such as name={config.name}-2")


def check_free_for_ensemble(config: Config, kind: str) -> None:
    """Raise UserError if the run directory holds a training, or another kind of ensemble."""
    run = config.run_dir
    if is_ensemble(run) and (other := read_ensemble(run).kind) != kind:
        raise UserError(
            f"{run} holds an ensemble of {KINDS[other]}: give this one another name, such as name={config.name}-2"
        )
    stage = _trained_stage(config)
    held = "self-training" if (run / SELF_TRAINING).is_file() else f"training ({stage})" if stage is not None else None
    if held is not None:
        raise UserError(f"{run} holds a {held}: give the ensemble another name, such as name={config.name}-2")


def check_free_for_self_training(config: Config) -> None:
    """Raise UserError if the run directory holds a training or an ensemble."""
    run, advice = config.run_dir, f"give the self-training another name, such as name={config.name}-self"
    if is_ensemble(run):
        raise UserError(f"{run} holds an ensemble: {advice}")
    if not (run / SELF_TRAINING).is_file() and (stage := _trained_stage(config)) is not None:
        raise UserError(f"{run} holds a training ({stage}): {advice}")


def _trained_stage(config: Config) -> str | None:
    """Return a stage that the run directory has a model or checkpoints of; None if there is none."""
    folders = {stage: (config.run_dir / stage, config.checkpoints_dir / stage) for stage in STAGES}
    return next((stage for stage, parts in folders.items() if any(part.is_dir() for part in parts)), None)
