"""`ulmfit-dist predict`: labels of texts."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_files, add_model_command
from ulmfit_dist.cli.texts import check_output, label_texts, read_texts
from ulmfit_dist.distributed.env import silence_warnings


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_model_command(subparsers, "predict", "label texts")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text (default: one per line from standard input)")
    add_files(parser)


def run(args: argparse.Namespace) -> None:
    """Print labels and probabilities, or write them to a file."""
    texts = read_texts(args)
    check_output(args)
    silence_warnings()
    from ulmfit_dist.inference.predictor import TextClassifier

    label_texts(texts, TextClassifier(args.run, trust_remote_code=args.trust_remote_code), args.output)
