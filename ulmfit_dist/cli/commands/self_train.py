"""`ulmfit-dist self-train`: rounds of classifiers that also train on pseudo-labels."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_fresh, add_run_command, add_trust
from ulmfit_dist.cli.start import starts_over


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    help = "train a run, then rounds that also learn from labels which a teacher gives to unlabelled texts"
    parser = add_run_command(subparsers, "self-train", help)
    add_fresh(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> None:
    """Train the rounds, and score the best one."""
    from ulmfit_dist.config.loading import load_config
    from ulmfit_dist.distributed.runtime import Runtime
    from ulmfit_dist.stages.self_train import config_of_round, self_train

    config = load_config(args.config, args.overrides)
    first = config_of_round(config, 0)
    with Runtime(config.runtime, run_dir=None if starts_over(args) else first.run_dir) as runtime:
        self_train(config, runtime, args.fresh, args.trust_remote_code)
