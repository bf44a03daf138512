"""`ulmfit-dist push`: upload an exported model to the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ulmfit_dist.cli.arguments import STAGES, Subparsers, add_command
from ulmfit_dist.distributed.env import num_processes, silence_warnings
from ulmfit_dist.errors import UserError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(subparsers, "push", "upload a model with a model card to the Hugging Face hub")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory, or an exported model")
    parser.add_argument("name", metavar="USER/NAME", help="the repository; it is created if it does not exist")
    parser.add_argument("--stage", choices=STAGES, help="default: the classifier, if the run has one")
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--license", metavar="ID", help="license of the model, such as apache-2.0 or cc-by-4.0; required")
    help = "languages of the texts, such as en (default: tokenizer.lang, unless SentencePiece splits the texts)"
    parser.add_argument("--language", metavar="CODE", nargs="+", default=[], help=help)


def run(args: argparse.Namespace) -> None:
    """Upload the model; print its stage, the commit, and the command that uses it."""
    silence_warnings()
    if num_processes() > 1:
        raise UserError(f"{num_processes()} processes: push from one process")
    license = args.license or _ask_for_license()
    from ulmfit_dist.export.hub_push import push
    from ulmfit_dist.export.model_card import times

    pushed = push(args.run, args.name, license, args.stage, args.private, args.language)
    visibility = "private" if pushed.is_private else "public"
    print(f"{pushed.stage}: uploaded to {pushed.name} ({visibility}), {pushed.url}")
    print(
        f"vocab.json contains words of the training texts, each that occurs at least {times(pushed.min_freq)}: if the texts "
        f"are private, so may be these words"
    )
    use = f'predict hf:{pushed.name} "a text"' if pushed.stage == "classifier" else f"generate hf:{pushed.name} PROMPT"
    print(f"to use it: ulmfit-dist {use}")


def _ask_for_license() -> str:
    """Return the license that the user types; without a terminal, it must be an argument."""
    if not sys.stdin.isatty():
        raise UserError("--license is missing: name the license of the model, such as --license apache-2.0")
    try:
        return input("license of the model, such as apache-2.0 or cc-by-4.0: ").strip()
    except EOFError:
        return ""
