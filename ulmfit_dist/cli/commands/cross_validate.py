"""`ulmfit-dist cross-validate`: a run for each fold, and the mean of their metrics."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_fresh, add_run_command
from ulmfit_dist.cli.start import starts_over


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_run_command(
        subparsers, "cross-validate", "train a run for each of data.folds; print the mean of their metrics"
    )
    parser.add_argument("--ensemble", action="store_true", help="make the folds' classifiers one, and score it once on test")
    add_fresh(parser)


def run(args: argparse.Namespace) -> None:
    """Train the folds and print mean and standard deviation of their metrics."""
    from ulmfit_dist.config.loading import load_config
    from ulmfit_dist.distributed.runtime import Runtime
    from ulmfit_dist.stages.cross_validate import configs_of_folds, cross_validate, describe_figures

    config = load_config(args.config, args.overrides)
    first = configs_of_folds(config)[0]
    with Runtime(config.runtime, run_dir=None if starts_over(args) else first.run_dir) as runtime:
        figures = cross_validate(config, runtime, args.fresh, args.ensemble)
        heading = f"\n{config.name}: mean ± standard deviation of {config.data.folds} folds"
        runtime.print("\n".join([heading, *describe_figures(figures)]))
