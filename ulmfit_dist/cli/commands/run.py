"""`ulmfit-dist run`: all stages."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_fresh, add_run_command
from ulmfit_dist.cli.start import start


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_run_command(subparsers, "run", "run all stages (prepare, lm, classifier); finished ones are skipped")
    add_fresh(parser)


def run(args: argparse.Namespace) -> None:
    """Prepare the texts, then train the language model and the classifier."""
    config, runtime = start(args)
    from ulmfit_dist.stages.run import run

    with runtime:
        run(config, runtime, fresh=args.fresh)
