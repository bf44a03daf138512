"""`ulmfit-dist prepare`: texts to a token store."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_run_command
from ulmfit_dist.cli.start import start


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_run_command(subparsers, "prepare", "tokenize the texts into a token store, on all ranks")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N documents as the model reads them")
    parser.add_argument("--verify", action="store_true", help="read all files again, including those that seem unchanged")


def run(args: argparse.Namespace) -> None:
    """Prepare the texts and print a summary of the store."""
    config, runtime = start(args)
    from ulmfit_dist.stages.prepare import prepare, summarize

    with runtime:
        store = prepare(config, runtime, args.verify)
        if not args.verbose:  # then it has been logged
            runtime.print(summarize(store))
        if args.show:
            from ulmfit_dist.stages.show_batch import show_documents

            show_documents(store, args.show, runtime)
