"""`ulmfit-dist doctor`: checks of this machine on every rank."""

from __future__ import annotations

import argparse
from pathlib import Path

from ulmfit_dist.cli.arguments import Subparsers, add_command, add_device, add_json


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    help = "check this machine on every rank: devices, numerics, network, folders, services, speed"
    parser = add_command(subparsers, "doctor", help)
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="a YAML config (default: the defaults of all keys)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys to set, such as runtime.precision=bf16")
    add_device(parser)
    add_json(parser, "results")


def run(args: argparse.Namespace) -> None:
    """Run the checks and print their results. An override may stand in the place of the config."""
    from ulmfit_dist.config.loading import load_config
    from ulmfit_dist.doctor.suite import doctor

    path, overrides = args.config, args.overrides
    if path is not None and "=" in path and not Path(path).is_file():
        path, overrides = None, [path, *overrides]
    defaults = ["data.path=."] if path is None else []  # reads no text
    doctor(load_config(path, [*defaults, *overrides]), args.json)
