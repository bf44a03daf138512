"""`ulmfit-dist predict`: labels of texts."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_device, add_files, add_model_command, add_quantize, add_verbosity
from ulmfit_dist.cli.texts import check_arguments, join_ranks, label, report_quantization


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_model_command(subparsers, "predict", "label texts")
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text (default: one per line from standard input)")
    add_files(parser, "labels and probabilities", "predicted_")
    add_device(parser)
    add_quantize(parser)
    add_verbosity(parser)


def run(args: argparse.Namespace) -> None:
    """Print labels and probabilities, or write them to a file."""
    check_arguments(args)
    with join_ranks() as (ranks, device):
        from ulmfit_dist.inference.loading import model_folders
        from ulmfit_dist.inference.saved_ensemble import SavedEnsemble, open_classifier

        runs = model_folders([args.run], ranks)
        with ranks.fail_together():
            classifier = open_classifier(runs[0], device, args.trust_remote_code, args.quantize)
        if isinstance(classifier, SavedEnsemble):
            report_quantization(args, classifier.folders, classifier.members, ranks)
        else:
            report_quantization(args, runs, [classifier], ranks)
        label(args, classifier, ranks)
