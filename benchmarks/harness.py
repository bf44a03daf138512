"""Benchmark harness: measurements of contenders in turn, on the same work, for docs/performance.md.

Each measurement runs in its own process, so that nothing is warm from an earlier one, and peak memory is its own. Rounds
alternate between all contenders, forwards and backwards, so that load on a shared machine affects all of them. The
trade-off: each process imports and builds everything again, which its figure excludes.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.machine import machine

RESULT = "measured: "
"""Prefix of the last line of a measuring process."""


@dataclass(frozen=True)
class Measured:
    """Result of one measurement.

    Attributes:
        value: figure in the benchmark's unit.
        details: further figures to print, by name.
    """

    value: float
    details: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """Comparison of contenders.

    Attributes:
        title: one-line description.
        unit: unit of the figures.
        contenders: functions that measure a case, by name.
        cases: sizes or settings at which all contenders are measured.
        baseline: contender to which ratios refer.
        higher_is_better: whether larger figures are better; a ratio above 1 is better than the baseline.
    """

    title: str
    unit: str
    contenders: Mapping[str, Callable[[str], Measured]]
    cases: Sequence[str] = ("",)
    baseline: str = "fastai"
    higher_is_better: bool = True


@dataclass(frozen=True)
class Sample:
    """Measurement, and peak memory of its process or its GPU, in MB."""

    measured: Measured
    memory: float


def run(name: str, benchmark: Benchmark, rounds: int, cases: Sequence[str], contenders: Sequence[str]) -> Iterator[str]:
    """Measure, and yield the lines of the report."""
    yield f"{benchmark.title}; {benchmark.unit}, medians of {rounds}"
    yield machine()
    for case in cases:
        samples: dict[str, list[Sample]] = {contender: [] for contender in contenders}
        for i in range(rounds):
            for contender in contenders if i % 2 == 0 else reversed(contenders):
                samples[contender].append(_measure_in_process(name, case, contender))
                print(f"{name} {case} round {i + 1} {contender}: {_format(samples[contender][-1].measured.value)}",
                      file=sys.stderr, flush=True)  # fmt: skip
        yield from _table(benchmark, case, samples)


def measure(benchmark: Benchmark, case: str, contender: str) -> None:
    """Make one measurement in this process, and print it for the parent process."""
    measured = benchmark.contenders[contender](case)
    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    if torch.cuda.is_initialized():
        memory = torch.cuda.max_memory_allocated() / 2**20
    print(RESULT + json.dumps({"value": measured.value, "details": dict(measured.details), "memory": memory}))


def _measure_in_process(name: str, case: str, contender: str) -> Sample:
    command = [sys.executable, "-m", "benchmarks", name, "--measure", case, contender]
    process = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "WANDB_MODE": "disabled"})
    lines = [line for line in process.stdout.splitlines() if line.startswith(RESULT)]
    if process.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{process.stdout[-2000:]}{process.stderr[-4000:]}")
    result = json.loads(lines[-1].removeprefix(RESULT))
    return Sample(Measured(result["value"], result["details"]), result["memory"])


def _table(benchmark: Benchmark, case: str, samples: Mapping[str, list[Sample]]) -> Iterator[str]:
    width = max(map(len, samples))
    yield ""
    yield f"{case:<{width}}{'median':>12}{'min':>12}{'max':>12}{'ratio':>8}{'memory':>11}"
    medians = {name: statistics.median(sample.measured.value for sample in own) for name, own in samples.items()}
    for name, own in samples.items():
        values = [sample.measured.value for sample in own]
        ratio = medians[name] / medians.get(benchmark.baseline, medians[name])
        ratio = ratio if benchmark.higher_is_better else 1 / ratio
        memory = statistics.median(sample.memory for sample in own)
        line = "".join(f"{_format(value):>12}" for value in (medians[name], min(values), max(values)))
        details = own[-1].measured.details
        text = "  ".join(f"{key} {value if isinstance(value, str) else _format(value)}" for key, value in details.items())
        yield f"{name:<{width}}{line}{ratio:>8.2f}{memory:>8,.0f} MB  {text}".rstrip()


def _format(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
