"""`predict_file`: the Python API of `ulmfit-dist predict --file`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ulmfit_dist.data.input_table import open_input
from ulmfit_dist.distributed.collectives import Collectives, OneProcess
from ulmfit_dist.inference.annotate import annotate_table
from ulmfit_dist.inference.annotators import PREFIX, Labels
from ulmfit_dist.inference.saved_ensemble import open_classifier
from ulmfit_dist.pretrained.hub import model_path


def predict_file(
    folder: str | Path,
    file: str | Path,
    output: str | Path,
    text_col: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    prefix: str = PREFIX["predict"],
    trust_remote_code: bool = False,
    ranks: Collectives | None = None,
) -> None:
    """Write the rows of a table with their predicted labels, as `ulmfit-dist predict --file`. It resumes if interrupted.

    Args:
        folder: a run directory, which may be that of an ensemble, or its `classifier/`.
        file: a CSV, TSV, JSON or Parquet file, a folder of text files, or a file of lines.
        output: a file that ends in .jsonl, .csv, .tsv or .parquet.
        text_col: text columns; None: those of the model's config.
        device: device of the model.
        prefix: prefix of the new columns.
        trust_remote_code: call user-defined functions of the model's config (tokenizer.rules, model.arch).
        ranks: a `Runtime` whose ranks share the rows; None: this process.

    Raises:
        UserError: the classifier is missing, the table cannot be read, or the output cannot be written.
    """
    ranks = ranks or OneProcess()
    with ranks.fail_together():
        classifier = open_classifier(model_path(folder), device, trust_remote_code)
        table = open_input(Path(file), replace(classifier.data, on_error="strict"), text_col)
    annotate_table(table, Labels(classifier, prefix), Path(output), ranks)
