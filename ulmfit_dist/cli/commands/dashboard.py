"""`ulmfit-dist dashboard`: a workspace with the project's charts in W&B."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_config_command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_config_command(subparsers, "dashboard", "save a workspace with this project's charts in W&B")
    parser.add_argument("--entity", metavar="E", help="user or team in W&B (default: WANDB_ENTITY, or your own)")
    parser.add_argument("--dry-run", action="store_true", help="print the workspace without saving it")


def run(args: argparse.Namespace) -> None:
    """Save the workspace and print its address."""
    from ulmfit_dist.config.loading import load_config
    from ulmfit_dist.tracking.wandb_workspace import dashboard

    print(dashboard(load_config(args.config, args.overrides), args.entity, args.dry_run))
