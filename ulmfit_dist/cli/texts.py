"""Texts from the command line, standard input or a file, and the new columns of a model for them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ulmfit_dist.distributed import signals
from ulmfit_dist.distributed.env import num_processes, silence_warnings
from ulmfit_dist.errors import UserError

if TYPE_CHECKING:
    import torch

    from ulmfit_dist.config.schema import DataConfig
    from ulmfit_dist.data.input_table import InputTable
    from ulmfit_dist.distributed.collectives import Collectives
    from ulmfit_dist.inference.annotate import Annotator
    from ulmfit_dist.inference.predictor import Classifier, TextClassifier

SHOWN = 60
"""Characters of a text that are printed beside its label."""
SETTINGS = ("data.encoding", "data.quoting", "data.on_error")
"""Keys that `--set` takes."""


def check_arguments(args: argparse.Namespace) -> None:
    """Check the arguments of `add_files`, before a model is loaded. Raises UserError."""
    if args.texts and args.file:
        raise UserError("texts on the command line and --file at once: give one of them")
    if args.file is None and (args.text_col or args.set):
        raise UserError("--text-col and --set are for a table: name it with --file")
    if args.file is not None and not args.file.exists():
        raise UserError(f"--file {args.file}: no such file or folder")
    if args.prefix is not None and args.output is None:
        raise UserError("--prefix names the columns of a file: give --output, too, or leave it out")
    if num_processes() > 1 and args.output is None:
        raise UserError(f"{num_processes()} processes: give --output, or start one process")
    if num_processes() > 1 and args.file is None:
        raise UserError(f"{num_processes()} processes: give the texts with --file, or start one process")
    if args.output is not None:
        from ulmfit_dist.inference.output_table import check_suffix

        check_suffix(args.output)


@contextmanager
def join_ranks() -> Iterator[tuple[Collectives, torch.device]]:
    """Join the other processes of the launch, if there are any. Yields collectives and the device of this process."""
    silence_warnings()
    if num_processes() == 1:
        from ulmfit_dist.distributed.collectives import OneProcess
        from ulmfit_dist.distributed.devices import local_device

        yield OneProcess(), local_device()
        return
    from ulmfit_dist.config.schema import RuntimeConfig
    from ulmfit_dist.distributed.runtime import Runtime

    with Runtime(RuntimeConfig(precision="fp32")) as runtime:
        yield runtime, runtime.device


def report_quantization(
    args: argparse.Namespace, runs: Sequence[Path], classifiers: Sequence[TextClassifier], ranks: Collectives
) -> None:
    """Print what `--quantize` changes in the accuracy on valid, to standard error, on rank 0. Collective."""
    if args.quantize is None or args.quiet:
        return
    from ulmfit_dist.inference.quantization_effect import quantization_effect

    def report(message: object) -> None:
        print(message, file=sys.stderr, flush=True)

    with ranks.fail_together():
        for run, classifier in zip(runs, classifiers, strict=True) if ranks.rank == 0 else ():
            effect = quantization_effect(run, classifier, args.trust_remote_code, report)
            missing = "accuracy on valid not computed, its token store is missing: see evaluate RUN --data FILE"
            line = str(effect or f"{args.quantize}: {missing} --quantize {args.quantize}")
            report(f"{run}: {line}" if len(runs) > 1 else line)


def label(args: argparse.Namespace, classifier: Classifier, ranks: Collectives) -> None:
    """Print the labels of the texts that the arguments name, or write them to `--output`. Collective."""
    if args.output is None:
        _print_labels(open_table(args, classifier.data), classifier)
        return
    from ulmfit_dist.inference.annotators import PREFIX, Labels

    with ranks.fail_together():
        table = open_table(args, classifier.data)
    prefix = PREFIX["predict"] if args.prefix is None else args.prefix
    annotate(table, Labels(classifier, prefix), args.output, ranks)


def annotate(table: InputTable, annotator: Annotator, output: Path, ranks: Collectives) -> None:
    """Write the table with the annotator's columns. A signal stops at once, and the same command resumes. Collective."""
    from ulmfit_dist.inference.annotate import annotate_table

    with signals.at_once():
        annotate_table(table, annotator, output, ranks)


def open_table(args: argparse.Namespace, data: DataConfig) -> InputTable:
    """Return the texts that the arguments name as a table. Raises UserError.

    Args:
        data: section of the model's config.
    """
    from ulmfit_dist.data.input_table import open_input, table_of_texts

    if args.file is None:
        return table_of_texts(args.texts or _lines_of_input())
    return open_input(args.file, _reading(data, args.set), args.text_col)


def _reading(data: DataConfig, settings: Sequence[str]) -> DataConfig:
    """Return the section with the settings of `--set`; invalid bytes are an error by default. Raises UserError."""
    from ulmfit_dist.config.loading import load_config

    for setting in settings:
        if setting.partition("=")[0] not in SETTINGS:
            raise UserError(f"--set {setting}: expected one of {', '.join(SETTINGS)}, such as data.encoding=cp1252")
    given = load_config(None, ["data.path=x", *settings]).data
    if given.on_error == "skip":
        raise UserError("--set data.on_error=skip: each row is written, so give strict or replace")
    keys = (setting.partition("=")[0].removeprefix("data.") for setting in settings)
    return replace(data, **{"on_error": "strict", **{key: getattr(given, key) for key in keys}})


def _lines_of_input() -> list[str]:
    """Return the lines of standard input. An empty line is a text, too, so that labels can be joined to lines."""
    try:
        content = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise UserError(f"standard input: cannot be read as UTF-8 text ({error})") from None
    if not content.strip():
        raise UserError("standard input: no text in it, expected one per line")
    return content.removesuffix("\n").split("\n")


def _print_labels(table: InputTable, classifier: Classifier) -> None:
    for start in range(0, table.num_rows, table.block_rows):
        texts = table.read(start, min(start + table.block_rows, table.num_rows)).texts
        for text, prediction in zip(texts, classifier.predict(texts), strict=True):
            shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
            print(f"{prediction}  {shown!r}")
