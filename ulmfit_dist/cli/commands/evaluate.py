"""`ulmfit-dist evaluate`: metrics of exported models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ulmfit_dist.cli.arguments import Subparsers, add_device, add_json, add_model_command, add_precision, add_quantize
from ulmfit_dist.errors import UserError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_model_command(subparsers, "evaluate", "compute a run's metrics again, or the metrics of new texts")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--split", choices=("valid", "test"), default="valid", help="documents (default: %(default)s)")
    group.add_argument("--data", type=Path, metavar="FILE", help="new labelled texts: a table, or a folder by class")
    parser.add_argument("--text-col", action="append", metavar="COL", help="text column of FILE; may be repeated")
    parser.add_argument("--label-col", metavar="COL", help="label column of FILE (default: both as in the run's config)")
    add_device(parser)
    add_quantize(parser)
    add_json(parser)
    add_precision(parser)


def run(args: argparse.Namespace) -> None:
    """Print the metrics."""
    columns = {"text_col": args.text_col, "label_col": args.label_col}
    columns = {name: value for name, value in columns.items() if value is not None}
    if columns and args.data is None:
        raise UserError("--text-col and --label-col are for new texts: name them with --data")
    from ulmfit_dist.config.schema import RuntimeConfig
    from ulmfit_dist.distributed.runtime import Runtime
    from ulmfit_dist.inference.loading import model_folders
    from ulmfit_dist.stages.evaluate import describe_figures, evaluate, precision_of_models

    (run,) = model_folders([args.run])
    with Runtime(RuntimeConfig(precision=args.precision or precision_of_models([run]))) as runtime:
        figures = evaluate(run, runtime, args.trust_remote_code, args.split, args.data, columns, args.quantize)
        runtime.print(json.dumps(figures, indent=1) if args.json else describe_figures(figures))
