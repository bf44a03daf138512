"""`ulmfit-dist report`: a run, or several runs compared, as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ulmfit_dist.cli.arguments import Subparsers, add_command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(subparsers, "report", "write report.html: one page of a run, or of several runs compared")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run directory, such as runs/quickstart")
    parser.add_argument(
        "--output", type=Path, metavar="F", help="default: report.html in the run directory; of several runs, in this folder"
    )


def run(args: argparse.Namespace) -> None:
    """Write the page and print its path."""
    from ulmfit_dist.report.page import write_report

    print(write_report(args.runs, args.output))
