"""Start of a command: its config, and the process group of its ranks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ulmfit_dist.distributed.env import is_restart

if TYPE_CHECKING:
    from ulmfit_dist.config.schema import Config
    from ulmfit_dist.distributed.runtime import Runtime


def start(args: argparse.Namespace) -> tuple[Config, Runtime]:
    """Load the config and join the process group. With `precision: auto`, a run that resumes keeps its precision."""
    from ulmfit_dist.config.loading import load_config
    from ulmfit_dist.distributed.runtime import Runtime

    config = load_config(args.config, args.overrides)
    return config, Runtime(config.runtime, run_dir=None if starts_over(args) else config.run_dir)


def starts_over(args: argparse.Namespace) -> bool:
    """Return whether the command ignores earlier checkpoints: `--fresh`, unless the launcher has restarted the ranks."""
    return getattr(args, "fresh", False) and not is_restart()
