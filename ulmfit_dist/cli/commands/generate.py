"""`ulmfit-dist generate`: texts that continue a prompt."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_device, add_files, add_model_command, add_verbosity
from ulmfit_dist.cli.texts import annotate, check_arguments, join_ranks, open_table
from ulmfit_dist.errors import UserError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_model_command(subparsers, "generate", "continue a prompt")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="the beginning of the text")
    add_files(parser, "the texts that continue the row's prompt", "generated_")
    add_device(parser)
    add_verbosity(parser)
    parser.add_argument("--words", type=int, default=40, help="tokens to add (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.75, help="lower is more likely text (default: %(default)s)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely words only, such as 50")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="from the likeliest words of total probability P, such as 0.9"
    )
    parser.add_argument("--min-p", type=float, metavar="P", help="from words P times as likely as the first, or more")
    parser.add_argument("--samples", type=int, default=2, help="texts to generate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=42, help="seed of the sampling (default: %(default)s)")
    parser.add_argument("--keep-lines", action="store_true", help="keep line breaks (default: a text is one line)")


def run(args: argparse.Namespace) -> None:
    """Print the texts, numbered, or write them as columns of a table of prompts."""
    args.texts = [] if args.prompt is None else [args.prompt]
    if not args.texts and args.file is None:
        raise UserError("no prompt: give a PROMPT, or a table of prompts with --file and --output")
    if args.file is not None and args.output is None:
        raise UserError(f"--file {args.file}: give --output, too, such as --output texts.csv")
    check_arguments(args)
    with join_ranks() as (ranks, device):
        from ulmfit_dist.inference.generator import LanguageModel, Sampling
        from ulmfit_dist.inference.loading import model_folders

        sampling = Sampling(args.temperature, args.top_k, args.top_p, args.min_p)
        (run,) = model_folders([args.run], ranks)
        with ranks.fail_together():
            model = LanguageModel(run, device, args.trust_remote_code)
        if args.output is None:
            texts = model.generate(args.prompt, args.words, args.samples, args.seed, sampling, args.keep_lines)
            for number, text in enumerate(texts, 1):
                print(f"{number}: {text}")
            return
        from ulmfit_dist.inference.annotators import PREFIX, Continuations

        with ranks.fail_together():
            table = open_table(args, model.data)
        prefix = PREFIX["generate"] if args.prefix is None else args.prefix
        options = (args.words, args.samples, args.seed, sampling, args.keep_lines, prefix)
        annotate(table, Continuations(model, *options), args.output, ranks)
