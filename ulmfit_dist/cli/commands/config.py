"""`ulmfit-dist config`: the resolved config."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_config_command
from ulmfit_dist.distributed.env import is_main_process
from ulmfit_dist.errors import UserError, did_you_mean


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_config_command(subparsers, "config", "print the resolved config, each key with its meaning")
    parser.add_argument("--get", action="append", metavar="KEY", help="print the value of one key only; may be repeated")


def run(args: argparse.Namespace) -> None:
    """Print all keys with value and meaning, or the values of the keys that `--get` names."""
    from ulmfit_dist.config.loading import describe, load_config

    described = list(describe(load_config(args.config, args.overrides)))
    values = {key: value for key, value, _ in described}
    for key in args.get or ():
        if key not in values:
            raise UserError(f"--get {key}: unknown key; {did_you_mean(key, values)}")
    if not is_main_process():
        return
    if args.get:
        print(*(values[key] for key in args.get), sep="\n")
    else:
        for key, value, meaning in described:
            print(f"{f'{key}: {value}':<44} # {meaning}")
