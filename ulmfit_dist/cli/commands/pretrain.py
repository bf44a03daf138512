"""`ulmfit-dist pretrain`: a language model of texts without labels."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_fresh, add_run_command
from ulmfit_dist.cli.start import start


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    help = "train a language model only, on texts without labels, for model.pretrained of other runs"
    add_fresh(add_run_command(subparsers, "pretrain", help))


def run(args: argparse.Namespace) -> None:
    """Prepare the texts and train the language model."""
    args.overrides = [*args.overrides, "data.label_col=null"]
    config, runtime = start(args)
    from ulmfit_dist.stages.run import run

    with runtime:
        run(config, runtime, fresh=args.fresh, stages=["lm"])
