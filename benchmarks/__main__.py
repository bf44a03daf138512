"""Measure one thing: `python -m benchmarks NAME [--rounds 5] [--cases CASE ...] [--contenders NAME ...] [--save]`.

The report is printed, and with --save kept in benchmarks/results/NAME.txt.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks import harness

RESULTS = Path(__file__).parent / "results"
NAMES = (
    "tokenize",
    "lm_loader",
    "lm_step",
    "lm_perplexity",
    "classifier_epoch",
    "predict",
    "generate",
    "quickstart",
    "checkpoint",
    "scaling",
)
"""Modules of this package; each has a `BENCHMARK`."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", metavar="CASE", help="some of the benchmark's cases")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="some of the benchmark's contenders")
    parser.add_argument("--save", action="store_true", help=f"keep the report in {RESULTS.name}/")
    parser.add_argument("--measure", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    benchmark: harness.Benchmark = importlib.import_module(f"benchmarks.{args.name}").BENCHMARK
    if args.measure:
        harness.measure(benchmark, *args.measure)
        return
    lines = [f"$ python -m benchmarks {' '.join(word for word in sys.argv[1:] if word != '--save')}"]
    print(lines[0])
    cases, contenders = args.cases or benchmark.cases, args.contenders or list(benchmark.contenders)
    for line in harness.run(args.name, benchmark, args.rounds, cases, contenders):
        print(line, flush=True)
        lines.append(line)
    if args.save:
        (RESULTS / f"{args.name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
