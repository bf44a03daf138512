"""`ulmfit-dist show-results`: predictions of a run's models for validation texts."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_model_command, add_stage


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_model_command(subparsers, "show-results", "print predictions of a run's models for validation texts")
    add_stage(parser)


def run(args: argparse.Namespace) -> None:
    """Print a table for each stage."""
    from ulmfit_dist.config.schema import RuntimeConfig
    from ulmfit_dist.distributed.runtime import Runtime
    from ulmfit_dist.stages.show_results import result_tables

    with Runtime(RuntimeConfig()) as runtime:
        tables = result_tables(args.run, runtime, args.stage, args.rows, args.tokens, args.trust_remote_code)
        for table in tables:
            runtime.print(table)
