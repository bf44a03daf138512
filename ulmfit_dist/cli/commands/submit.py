"""`ulmfit-dist submit`: `run`, or `self-train`, as a batch job of SLURM."""

from __future__ import annotations

import argparse

from ulmfit_dist.cli.arguments import Subparsers, add_config_command, add_device, add_fresh
from ulmfit_dist.errors import UserError

SBATCH_OPTIONS = {
    "gpus-per-node": "4",
    "cpus-per-task": "16, for all ranks of a node",
    "time": "4:00:00",
    "account": "nlp",
    "partition": "gpu",
}
"""Options of sbatch that `submit` takes under their own names, with examples."""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_config_command(subparsers, "submit", "submit `run` as a batch job of SLURM")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of the job (default: %(default)s)")
    for name, example in SBATCH_OPTIONS.items():
        parser.add_argument(f"--{name}", metavar="X", help=f"as in sbatch, such as {example}")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION=X", help="another option of sbatch, such as constraint=a100"
    )
    help = "command of the job (default: %(default)s)"
    parser.add_argument("--command", dest="job_command", choices=("run", "self-train"), default="run", help=help)
    parser.add_argument("--dry-run", action="store_true", help="print the script without submitting it")
    add_device(parser, dest="job_device")  # of the job: this machine may have no GPU
    parser.add_argument("--both-directions", action="store_true", help="as in run")
    add_fresh(parser)


def run(args: argparse.Namespace) -> None:
    """Submit the job, or print its script."""
    from ulmfit_dist.config.loading import load_config
    from ulmfit_dist.stages.slurm import submit

    config = load_config(args.config, args.overrides)
    if args.nodes < 1:
        raise UserError(f"--nodes {args.nodes}: give a whole number of at least 1")
    options = {"nodes": str(args.nodes)}
    options |= {name: value for name in SBATCH_OPTIONS if (value := getattr(args, name.replace("-", "_"))) is not None}
    options |= {name: value for name, _, value in (option.lstrip("-").partition("=") for option in args.sbatch)}
    argv = [args.config, *args.overrides, *(["--fresh"] if args.fresh else [])]
    if args.both_directions:
        argv.append("--both-directions")
    if args.job_device != "auto":
        argv.append(f"--device={args.job_device}")
    print(submit(config, argv, options, args.dry_run, args.job_command))
