"""`ulmfit-dist evaluate`: metrics of exported models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ulmfit_dist.cli.arguments import Subparsers, add_json, add_model_command, add_precision


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_model_command(subparsers, "evaluate", "compute a run's metrics again, or the metrics of new texts")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--split", choices=("valid", "test"), default="valid", help="documents (default: %(default)s)")
    group.add_argument("--data", type=Path, metavar="FILE", help="new labelled texts: a table, or a folder by class")
    add_json(parser)
    add_precision(parser)


def run(args: argparse.Namespace) -> None:
    """Print the metrics."""
    from ulmfit_dist.config.schema import RuntimeConfig
    from ulmfit_dist.distributed.runtime import Runtime
    from ulmfit_dist.stages.evaluate import describe_figures, evaluate, precision_of_models

    with Runtime(RuntimeConfig(precision=args.precision or precision_of_models([args.run]))) as runtime:
        figures = evaluate(args.run, runtime, args.trust_remote_code, args.split, args.data)
        runtime.print(json.dumps(figures, indent=1) if args.json else describe_figures(figures))
