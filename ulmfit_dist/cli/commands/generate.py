"""`ulmfit-dist generate`: texts that continue a prompt."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_model_command
from ulmfit_dist.distributed.env import silence_warnings


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_model_command(subparsers, "generate", "continue a prompt")
    parser.add_argument("prompt", metavar="PROMPT", help="the beginning of the text")
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
    """Print the texts, numbered."""
    silence_warnings()
    from ulmfit_dist.inference.generator import LanguageModel, Sampling

    model = LanguageModel(args.run, trust_remote_code=args.trust_remote_code)
    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.min_p)
    texts = model.generate(args.prompt, args.words, args.samples, args.seed, sampling, args.keep_lines)
    for number, text in enumerate(texts, 1):
        print(f"{number}: {text}")
