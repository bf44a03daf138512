"""`ulmfit-dist show-batch`: the first training batch as text."""

from __future__ import annotations

import argparse
from pathlib import Path

from ulmfit_dist.cli.arguments import Subparsers, add_run_command, add_stage
from ulmfit_dist.cli.start import start


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_run_command(subparsers, "show-batch", "print the first training batch as text")
    add_stage(parser)
    parser.set_defaults(is_resumable=False)


def run(args: argparse.Namespace) -> None:
    """Print a table for each stage. CONFIG may be a run directory, whose config is then taken."""
    if (config_of_run := Path(args.config) / "config.yaml").is_file():
        args.config = config_of_run
    config, runtime = start(args)
    from ulmfit_dist.stages.show_results import batch_tables

    with runtime:
        for table in batch_tables(config, runtime, args.stage, args.rows, args.tokens):
            runtime.print(table)
