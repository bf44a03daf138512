"""`ulmfit-dist config`: the resolved config, and the recipes that come with the package."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_config_command
from ulmfit_dist.distributed.env import is_main_process
from ulmfit_dist.errors import UserError, did_you_mean


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_config_command(subparsers, "config", "print the resolved config, each key with its meaning", nargs="?")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--get", action="append", metavar="KEY", help="print the value of one key only; may be repeated")
    group.add_argument("--source", action="store_true", help="print the recipe as written, as a start for one of your own")
    group.add_argument("--list", action="store_true", help="print the recipes that come with the package")


def run(args: argparse.Namespace) -> None:
    """Print all keys with value and meaning, the values of the keys that `--get` names, the recipe, or all recipes."""
    _check(args)
    if args.list:
        lines = _recipes()
    elif args.source:
        lines = _source(args.config)
    else:
        lines = _resolved(args)
    if is_main_process():
        print(*lines, sep="\n")


def _check(args: argparse.Namespace) -> None:
    if args.list and args.config is not None:
        raise UserError(f"--list prints all recipes: leave out {args.config}, or leave out --list")
    if not args.list and args.config is None:
        raise UserError("no config is given: name one, such as quickstart, or list the recipes of the package with --list")
    if args.source and args.overrides:
        raise UserError(f"--source prints the recipe as written: leave out {args.overrides[0]}, or leave out --source")


def _recipes() -> list[str]:
    """Return a line per packaged recipe, with its description, and the folder of the recipes."""
    from ulmfit_dist.config.recipes import packaged_recipes, summary_of

    recipes = packaged_recipes()
    width = max(map(len, recipes)) + 2
    lines = [f"{name:<{width}}{summary_of(path)}" for name, path in recipes.items()]
    return [*lines, "", f"files: {next(iter(recipes.values())).parent}"]


def _source(config: str) -> list[str]:
    """Return the lines of a recipe as written; a name is always that of a packaged recipe."""
    from ulmfit_dist.config.recipes import find_recipe, packaged_recipe

    path = packaged_recipe(config) or find_recipe(config)  # `> quickstart.yaml` has created an empty file of that name
    return path.read_text(encoding="utf-8").splitlines()


def _resolved(args: argparse.Namespace) -> list[str]:
    from ulmfit_dist.config.loading import describe, load_config

    described = list(describe(load_config(args.config, args.overrides)))
    values = {key: value for key, value, _ in described}
    for key in args.get or ():
        if key not in values:
            raise UserError(f"--get {key}: unknown key; {did_you_mean(key, values)}")
    if args.get:
        return [values[key] for key in args.get]
    return [f"{f'{key}: {value}':<44} # {meaning}" for key, value, meaning in described]
