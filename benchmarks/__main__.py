"""Run a benchmark: `python -m benchmarks NAME [--rounds 5] [--cases CASE ...] [--contenders NAME ...] [--save]`.

The report is printed, and with --save written to benchmarks/results/NAME.txt.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.harness import Benchmark

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "tokenize": "text to ids, on one core",
    "lm_loader": "batches of the language model",
    "lm_step": "training steps of the language model",
    "lm_perplexity": "perplexity of the language model after equal numbers of steps",
    "classifier_epoch": "an epoch of the classifier",
    "predict": "classification of raw texts",
    "qrnn": "QRNN beside AWD-LSTM: steps of the language model, an epoch of the classifier, classification",
    "semi_supervised": "training steps of the classifier with losses of unlabelled documents and perturbed embeddings",
    "generate": "text generation by a language model",
    "quickstart": "BBC News from raw text to a classifier, launch/quickstart.sh against plain fastai",
    "checkpoint": "training with and without checkpoints",
    "scaling": "two processes against one with two threads",
}
"""Description of each module of this package that has a `BENCHMARK`."""


def main() -> None:
    width = max(map(len, NAMES))
    names = "\n".join(f"  {name:<{width}}  {description}" for name, description in NAMES.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=f"names:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help="benchmark to run, see below")
    parser.add_argument("--rounds", type=int, default=5, help="measurements per contender (default: %(default)s)")
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="cases to run (default: all)")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="contenders to run (default: all)")
    parser.add_argument("--save", action="store_true", help=f"write the report to {RESULTS.name}/")
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    from benchmarks import harness  # imported late because it imports torch

    benchmark: Benchmark = importlib.import_module(f"benchmarks.{args.name}").BENCHMARK
    if args.measure:
        harness.measure(benchmark, *args.measure)
        return
    lines = [f"$ python -m benchmarks {' '.join(argument for argument in sys.argv[1:] if argument != '--save')}"]
    print(lines[0])
    cases, contenders = args.cases or benchmark.cases, args.contenders or list(benchmark.contenders)
    for line in harness.run(args.name, benchmark, args.rounds, cases, contenders):
        print(line, flush=True)
        lines.append(line)
    if args.save:
        (RESULTS / f"{args.name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
