"""`ulmfit-dist lr-find`: a learning rate range test."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import STAGES, Subparsers, add_run_command
from ulmfit_dist.cli.start import start


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_run_command(subparsers, "lr-find", "run a learning rate range test and suggest rates for a stage")
    parser.add_argument("--stage", choices=STAGES, default="lm", help="default: %(default)s")
    parser.add_argument("--start", type=float, default=1e-7, metavar="LR", help="lowest rate (default: %(default)s)")
    parser.add_argument("--end", type=float, default=10, metavar="LR", help="highest rate (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="steps of the test (default: %(default)s)")
    parser.set_defaults(is_resumable=False)


def run(args: argparse.Namespace) -> None:
    """Run the test and print its suggestions."""
    config, runtime = start(args)
    from ulmfit_dist.stages.lr_find import describe_range, find_learning_rate

    with runtime:
        result = find_learning_rate(config, runtime, args.stage, args.start, args.end, args.steps)
        runtime.print(describe_range(result, config, args.stage))
