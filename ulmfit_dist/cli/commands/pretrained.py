"""`ulmfit-dist pretrained`: public language models, and what is in files with pretrained weights."""

from __future__ import annotations

import argparse
import json

from ulmfit_dist.cli.arguments import Subparsers, add_command, add_json
from ulmfit_dist.errors import UserError

ACTIONS = ("list", "show", "fetch")


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    help = "list public language models for model.pretrained, show what a file contains, or download one"
    parser = add_command(subparsers, "pretrained", help)
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="list", help="list (default), show or fetch")
    parser.add_argument("model", nargs="?", metavar="NAME_OR_PATH", help="a public model; for show also a file or folder")
    parser.add_argument("--backwards", action="store_true", help="the model that reads texts from their end")
    add_json(parser, "facts")


def run(args: argparse.Namespace) -> None:
    """Print the table, or the facts of a model, or download it."""
    if args.action == "list" and args.model is not None:
        raise UserError(f"pretrained list {args.model}: list takes no name: show it with `pretrained show {args.model}`")
    if args.action != "list" and args.model is None:
        raise UserError(f"pretrained {args.action}: no model is given: name one, such as de")
    if args.action == "list":
        if args.backwards:
            raise UserError("pretrained --backwards: list shows both directions: leave it out")
        _list(args.json)
    elif args.action == "show":
        from ulmfit_dist.pretrained.describe import describe

        _print(describe(args.model, args.backwards), args.json)
    else:
        _fetch(args)


def _list(as_json: bool) -> None:
    from ulmfit_dist.pretrained.describe import public_table

    columns, rows = public_table()
    if as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=1))
    else:
        widths = [max(map(len, column)) + 2 for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            print("".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _fetch(args: argparse.Namespace) -> None:
    """Download a public model, for machines without a network that share the cache."""
    from ulmfit_dist.models.pretrained import locate
    from ulmfit_dist.pretrained.registry import find_public_model, unknown_name

    if find_public_model(args.model) is None:
        raise UserError(f"{args.model}: {unknown_name(args.model)} anything else that can be downloaded")
    folder = str(locate(args.model, args.backwards))
    print(json.dumps({"folder": folder}) if args.json else folder)


def _print(details: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(details, indent=1, ensure_ascii=False))
        return
    for number, part in enumerate(details):
        if number:
            print()
        width = max(map(len, part)) + 2
        for name, value in part.items():
            print(f"{name:<{width}}{_on_one_line(value)}")


def _on_one_line(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={'null' if item is None else item}" for key, item in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
