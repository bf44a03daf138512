"""`ulmfit-dist classifier`: the classifier stage."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_fresh, add_run_command
from ulmfit_dist.cli.start import start


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    add_fresh(add_run_command(subparsers, "classifier", "train the classifier on the run's language model"))


def run(args: argparse.Namespace) -> None:
    """Train the classifier."""
    config, runtime = start(args)
    from ulmfit_dist.stages.run import run_stage

    with runtime:
        run_stage(config, runtime, "classifier", fresh=args.fresh)
