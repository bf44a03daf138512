"""Texts to label from the command line, a file or standard input, and their labels as lines or JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ulmfit_dist.errors import UserError

if TYPE_CHECKING:
    from ulmfit_dist.inference.outputs import AnyPrediction
    from ulmfit_dist.inference.predictor import Classifier

SHOWN = 60
"""Characters of a text that are printed beside its label."""


def read_texts(args: argparse.Namespace) -> list[str]:
    """Return the texts, one per line of a file. An empty line is a text, too, so that labels can be joined to lines.

    Raises:
        UserError: texts from two places, a file that cannot be read as UTF-8, or no text.
    """
    if args.texts and args.file:
        raise UserError("texts on the command line and --file at once: give one of them")
    if args.texts:
        return list(args.texts)
    if args.file and args.file.is_dir():
        raise UserError(f"{args.file}: a folder, expected a file with one text per line")
    try:
        content = args.file.read_text(encoding="utf-8") if args.file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{args.file or 'standard input'}: cannot be read as UTF-8 text ({error})") from None
    if not content.strip():
        raise UserError(f"{args.file or 'standard input'}: no text in it, expected one per line")
    return content.removesuffix("\n").split("\n")


def check_output(args: argparse.Namespace) -> None:
    """Raise UserError if the folder of `--output` does not exist."""
    if args.output is not None and not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: no folder {args.output.parent}")


def label_texts(texts: Sequence[str], classifier: Classifier, output: Path | None) -> None:
    """Print the labels of texts, or write them to a file as JSON lines."""
    from ulmfit_dist.data.token_store import write_bytes

    predictions = classifier.predict(texts)
    if output is None:
        for line in _lines(texts, predictions):
            print(line)
        return
    lines = (json.dumps(asdict(prediction), ensure_ascii=False) for prediction in predictions)
    content = "".join(f"{line}\n" for line in lines)
    if output.exists() and not output.is_file():  # a pipe or a device cannot be replaced
        output.write_text(content, encoding="utf-8")
    else:
        write_bytes(output, content.encode())


def _lines(texts: Sequence[str], predictions: Sequence[AnyPrediction]) -> Iterator[str]:
    for text, prediction in zip(texts, predictions, strict=True):
        shown = text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
        yield f"{prediction}  {shown!r}"
