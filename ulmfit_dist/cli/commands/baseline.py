"""`ulmfit-dist baseline`: figures of TF-IDF with a linear model."""

from __future__ import annotations

import argparse
import json

from ulmfit_dist.cli.arguments import Subparsers, add_json, add_run_command
from ulmfit_dist.cli.start import start


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    help = "evaluate a linear model (of TF-IDF features) on the same documents, in seconds"
    parser = add_run_command(subparsers, "baseline", help)
    add_json(parser)
    parser.set_defaults(is_resumable=False)


def run(args: argparse.Namespace) -> None:
    """Fit the baseline and print its figures."""
    config, runtime = start(args)
    from ulmfit_dist.stages.baseline import baseline
    from ulmfit_dist.stages.baseline_figures import describe_baseline

    with runtime:
        figures = baseline(config, runtime)
        runtime.print(json.dumps(figures, indent=1) if args.json else "\n".join(describe_baseline(figures)))
