"""Runs that belong to one command, such as the folds of a cross-validation: each with its own name, in one W&B group."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from ulmfit_dist.config.schema import Config


def sub_run(config: Config, suffix: str, **changes: Any) -> Config:
    """Return the config of a run named `<name>-<suffix>`, in the group of `grouped`.

    Args:
        changes: sections that differ from those of `config`.
    """
    return replace(grouped(config), name=f"{config.name}-{suffix}", **changes)


def grouped(config: Config) -> Config:
    """Return the config with a W&B group: its own, that of WANDB_RUN_GROUP, or its name."""
    group = config.tracking.group or os.environ.get("WANDB_RUN_GROUP") or config.name
    return replace(config, tracking=replace(config.tracking, group=group))
