"""`ulmfit-dist init`: inspect texts and write a config that trains on them in a given time."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ulmfit_dist.cli.arguments import Subparsers, add_command, add_json
from ulmfit_dist.config.schema import TARGETS


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(subparsers, "init", "inspect your texts and write a config for them: the first command")
    parser.add_argument(
        "path", metavar="PATH", help="a folder, a CSV, TSV, JSON or Parquet file or a folder of them, hub:NAME"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys to set, such as data.quoting=false")
    parser.add_argument("--label", metavar="COL", help="the column of labels; none: train a language model only")
    parser.add_argument("--text", metavar="COL", action="append", default=[], help="a column of text; may be repeated")
    parser.add_argument("--target", choices=TARGETS, help="the kind of label: one class, several, or a number")
    parser.add_argument("--lang", metavar="XX", help="the language, such as en or de")
    parser.add_argument("--minutes", type=float, default=15, metavar="M", help="time limit of a run (default: %(default)s)")
    parser.add_argument("--name", help="name of the run (default: that of PATH)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the config file (default: NAME.yaml in this folder)")
    add_json(parser, "data card")


def run(args: argparse.Namespace) -> None:
    """Print the data card and write the config."""
    from ulmfit_dist.config.loading import load_config
    from ulmfit_dist.distributed.runtime import Runtime
    from ulmfit_dist.recipes.dataset_profile import TextOptions
    from ulmfit_dist.recipes.init import RecipeOptions, describe_result, init

    runtime = Runtime(load_config(None, ["data.path=.", *args.overrides]).runtime)  # reads no text
    options = TextOptions(tuple(args.text), args.label, args.target, args.lang, tuple(args.overrides))
    with runtime:
        show = None if args.json else runtime.print
        result = init(args.path, runtime, options, RecipeOptions(args.minutes, args.name, args.output), show)
        runtime.print(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) if args.json else describe_result(result))
