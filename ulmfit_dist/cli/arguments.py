"""Arguments that several commands share. Imports nothing heavy, so `--help` answers at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from ulmfit_dist.config.schema import PRECISIONS
from ulmfit_dist.distributed.env import DEVICES
from ulmfit_dist.errors import UserError

STAGES = ("lm", "classifier")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s: one line, on rank 0."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the message and the command whose `--help` lists the arguments."""
        raise UserError(f"{message} (see {self.prog} --help)")


if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[Parser]
else:
    Subparsers = argparse._SubParsersAction


def add_command(
    subparsers: Subparsers, name: str, help: str, description: str | None = None, usage: str | None = None
) -> Parser:
    """Add a command's parser.

    Args:
        description: for the command's own `--help`; None: as `help`.
        usage: None: as argparse makes it from the arguments.
    """
    parser = subparsers.add_parser(name, help=help, description=description or help, usage=usage)
    parser.set_defaults(command=name, is_resumable=False)
    return parser


def add_config_command(subparsers: Subparsers, name: str, help: str, nargs: str | None = None) -> Parser:
    """Add a command that takes a config and overrides; with `nargs="?"`, the config may be left out."""
    parser = add_command(subparsers, name, help)
    parser.add_argument(
        "config", metavar="CONFIG", nargs=nargs, help="a YAML config, or the name of a recipe, such as quickstart"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys to set, such as lm.global_batch_size=32")
    return parser


def add_run_command(subparsers: Subparsers, name: str, help: str) -> Parser:
    """Add a command that trains or prepares on all ranks, and resumes after a signal."""
    parser = add_config_command(subparsers, name, help)
    add_device(parser)
    add_verbosity(parser)
    parser.set_defaults(is_resumable=True)
    return parser


def add_model_command(subparsers: Subparsers, name: str, help: str) -> Parser:
    """Add a command that takes a run directory or an exported model."""
    parser = add_command(subparsers, name, help)
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run directory, such as runs/quickstart, an exported model, or hf:USER/NAME"
    )
    add_trust(parser)
    return parser


def add_verbosity(parser: Parser) -> None:
    """Add `--verbose` and `--quiet`."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--verbose", action="store_true", help="print details, such as precision and checkpoint")
    group.add_argument("--quiet", action="store_true", help="print results, warnings and errors only")


def add_device(parser: Parser, dest: str = "device") -> None:
    """Add `--device`, which `main` applies before the command runs, unless the value is stored under another name."""
    help = "compute on GPUs or CPUs (default: auto, GPUs if any are visible, unless ACCELERATE_USE_CPU is true)"
    parser.add_argument("--device", dest=dest, choices=DEVICES, default="auto", help=help)


def add_quantize(parser: Parser) -> None:
    """Add `--quantize`."""
    help = "compute LSTMs and linear layers in int8, on CPUs only"
    parser.add_argument("--quantize", choices=("int8",), help=help)


def add_fresh(parser: Parser) -> None:
    """Add `--resume` and `--fresh`."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="resume an interrupted run (the default)")
    group.add_argument("--fresh", action="store_true", help="train from the start")


def add_stage(parser: Parser) -> None:
    """Add the arguments of tables of texts: `--stage`, `--rows` and `--tokens`."""
    parser.add_argument("--stage", choices=STAGES, help="one stage only (default: all)")
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="rows of each table (default: %(default)s)")
    parser.add_argument("--tokens", action="store_true", help="show the tokens that the model reads, not readable text")


def add_files(parser: Parser, new_columns: str, prefix: str) -> None:
    """Add the arguments of commands that add columns to the rows of a file.

    Args:
        new_columns: phrase that names the new columns.
        prefix: their default prefix.
    """
    help = "read a CSV, TSV, JSON or Parquet table, a folder of text files, or with another ending a text per line"
    parser.add_argument("--file", type=Path, metavar="F", help=help)
    help = "text column of the table; may be repeated (default: data.text_col of the model)"
    parser.add_argument("--text-col", action="append", metavar="COL", help=help)
    help = (
        f"write all rows with {new_columns}, as .jsonl, .csv, .tsv or .parquet; if interrupted, run the same command again"
    )
    parser.add_argument("--output", type=Path, metavar="F", help=help)
    parser.add_argument("--prefix", metavar="P", help=f"prefix of the new columns (default: {prefix})")
    help = "how to read the file: data.encoding, data.quoting, or data.on_error=replace; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=X", help=help)


def add_json(parser: Parser, content: str = "figures") -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help=f"print the {content} as JSON")


def add_precision(parser: Parser) -> None:
    """Add `--precision`."""
    help = "as runtime.precision (default: the precision of the training if this machine supports it, else auto)"
    parser.add_argument("--precision", choices=PRECISIONS, type=lambda name: "fp32" if name == "no" else name, help=help)


def add_trust(parser: Parser) -> None:
    """Add `--trust-remote-code`."""
    parser.add_argument("--trust-remote-code", action="store_true", help="call the functions that the model's config names")
