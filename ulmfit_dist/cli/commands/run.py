"""`ulmfit-dist run`: all stages."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_fresh, add_run_command
from ulmfit_dist.cli.start import start, starts_over


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_run_command(subparsers, "run", "run all stages (prepare, lm, classifier); finished ones are skipped")
    help = "train a forward and a backward model, and average them"
    parser.add_argument("--both-directions", action="store_true", help=help)
    add_fresh(parser)


def run(args: argparse.Namespace) -> None:
    """Prepare the texts, then train the language model and the classifier."""
    if args.both_directions:
        _run_both_directions(args)
        return
    config, runtime = start(args)
    from ulmfit_dist.stages.run import run

    with runtime:
        run(config, runtime, fresh=args.fresh)


def _run_both_directions(args: argparse.Namespace) -> None:
    from ulmfit_dist.config.loading import load_config
    from ulmfit_dist.distributed.runtime import Runtime
    from ulmfit_dist.stages.both_directions import configs_of_directions, run_both_directions

    config = load_config(args.config, args.overrides)
    first = configs_of_directions(config)[0]
    with Runtime(config.runtime, run_dir=None if starts_over(args) else first.run_dir) as runtime:
        run_both_directions(config, runtime, args.fresh)
