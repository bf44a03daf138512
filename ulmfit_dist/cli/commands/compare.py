"""`ulmfit-dist compare`: the difference of two runs, or of two groups of runs, with its interval."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ulmfit_dist.cli.arguments import Subparsers, add_command, add_json
from ulmfit_dist.distributed.env import is_main_process
from ulmfit_dist.errors import UserError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "compare",
        "compare two runs on the same documents, or two groups of several seeds: A-* -- B-*",
        description="print the difference of two runs with its 95 % interval, and whether it may be chance",
        usage="%(prog)s [-h] [--json] RUN RUN | RUN [RUN ...] -- RUN [RUN ...]",
    )
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="*", help="a run directory; '--' separates two groups of several runs"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Print the comparison."""
    from ulmfit_dist.stages.compare import compare_arguments, describe_comparison

    figures = compare_arguments(args.runs, args.against)
    if is_main_process():
        print(json.dumps(figures, indent=1) if args.json else "\n".join(describe_comparison(figures)))


def split_sides(argv: list[str]) -> tuple[list[str], list[Path] | None]:
    """Return the arguments without the runs after the `--` of `compare`, and those runs; None if there is no `--`.

    argparse takes `--` as the end of the options and drops it. In `compare` it separates two sides, and options may follow.

    Raises:
        UserError: a second `--`.
    """
    if argv[:1] != ["compare"] or "--" not in argv:
        return argv, None
    index = argv.index("--")
    first, second = argv[:index], argv[index + 1 :]
    if "--" in second:
        raise UserError("'--' is given twice, but a comparison has two sides: ulmfit-dist compare A-1 A-2 -- B-1 B-2")
    options = [argument for argument in second if argument.startswith("-")]
    return [*first, *options], [Path(argument) for argument in second if not argument.startswith("-")]
