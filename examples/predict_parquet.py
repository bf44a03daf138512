"""Predict the labels of a Parquet file of texts with a trained classifier, and write them to another Parquet file.

    python examples/finetune_dataframe.py       # trains the classifier and writes the texts of the defaults
    python examples/predict_parquet.py
    python examples/predict_parquet.py RUN IN.parquet OUT.parquet --text-col review

The output has all rows and columns of the input, in the same order, then `predicted_label` and a probability for each class.
Rows are read, predicted and written in blocks, so memory does not depend on their number. If it is interrupted, start it
again: it resumes. Several processes (`accelerate launch`) share the rows. On the command line:

    ulmfit-dist predict RUN --file IN.parquet --output OUT.parquet
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import pyarrow.parquet

from ulmfit_dist import Runtime, predict_file
from ulmfit_dist.config.schema import RuntimeConfig


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict the labels of a Parquet file of texts.")
    parser.add_argument("run", nargs="?", default="runs/finetune_dataframe", help="run directory")
    parser.add_argument("input", nargs="?", type=Path, default=Path("runs/finetune_dataframe.parquet"))
    parser.add_argument("output", nargs="?", type=Path, default=Path("runs/predict_parquet.parquet"))
    parser.add_argument(
        "--text-col", nargs="+", help="columns of the texts (default: those that the classifier was trained on)"
    )
    args = parser.parse_args()

    with Runtime(
        RuntimeConfig(precision="fp32")
    ) as runtime:  # the ranks of a launcher, or this process; on a GPU if there is one
        predict_file(args.run, args.input, args.output, args.text_col, runtime.device, ranks=runtime)
        if runtime.is_main:
            show(args.output)


def show(output: Path) -> None:
    """Print the number of texts of each predicted label, reading the output in batches."""
    counts = Counter[str]()
    with pyarrow.parquet.ParquetFile(output) as file:
        for batch in file.iter_batches(columns=["predicted_label"]):
            counts.update(batch.column("predicted_label").to_pylist())
    for label, number in counts.most_common():
        print(f"{label}: {number}")


if __name__ == "__main__":
    main()
