"""Command line parser. Commands import their dependencies when they run, so `--help` and wrong arguments answer at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ulmfit_dist import __version__
from ulmfit_dist.cli.arguments import Parser
from ulmfit_dist.cli.commands import COMMANDS
from ulmfit_dist.cli.commands.compare import split_sides

EXAMPLES = """\
examples:
  ulmfit-dist init reviews.csv                                  inspects your texts and writes reviews.yaml
  ulmfit-dist run reviews.yaml                                  one process, all stages
  ulmfit-dist config --list                                     recipes that come with the package
  ulmfit-dist run quickstart                                    one of them, by its name
  accelerate launch -m ulmfit_dist run imdb                     all visible GPUs
  ulmfit-dist run imdb lm.global_batch_size=32                  any key of the config can be set
  ulmfit-dist submit imdb --nodes 2 --gpus-per-node 4 --time 4:00:00        the same under SLURM
  ulmfit-dist config imdb                                       every key, its value and its meaning
  ulmfit-dist predict runs/quickstart "A late goal won the cup."
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line, as `parse_args` does; options may also stand between overrides.

    Args:
        argv: the arguments; None: those of this process.

    Returns:
        The arguments; among them `command`, its name, and `is_resumable`: the same command resumes after a signal.

    Raises:
        UserError: an argument that the command does not take, or one that is missing.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    argv, against = split_sides(argv)
    args, rest = parser.parse_known_args(argv)
    options = [argument for argument in rest if argument.startswith("-")]
    if args.command == "compare":
        args.runs, args.against, rest = [*args.runs, *map(Path, rest)], against, options
    if options or (rest and not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(options or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _parser() -> Parser:
    parser = Parser(
        prog="ulmfit-dist",
        description="ULMFiT, distributed: train a language model on your texts, then a classifier on its encoder.",
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=20, width=100),
    )
    parser.add_argument("--version", action="version", version=f"ulmfit-dist {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        command.add_parser(subparsers)
    return parser
