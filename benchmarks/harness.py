"""Ours and others in turn, on the same work: how the figures of docs/performance.md are made.

A measurement is a process of its own: nothing is warm from the one before, and its peak memory is its own. Rounds go through
all contenders in turn, forwards and backwards, so that what a shared machine does to one it does to all. The price: each
process imports and builds anew, which its figure leaves out.
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
"""Begins the line that a measuring process ends with."""


@dataclass(frozen=True)
class Measured:
    """What one measurement found.

    Attributes:
        value: in the benchmark's unit.
        facts: what else is to be seen beside it, by name.
    """

    value: float
    facts: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """One comparison.

    Attributes:
        title: what is measured, in a line.
        unit: of the figures.
        contenders: by name, what measures one: takes a case.
        cases: sizes or settings that all contenders are measured at.
        baseline: the contender that ratios are to.
        higher_is_better: of the figures; the ratio says how many times as good as the baseline one is.
    """

    title: str
    unit: str
    contenders: Mapping[str, Callable[[str], Measured]]
    cases: Sequence[str] = ("",)
    baseline: str = "fastai"
    higher_is_better: bool = True


@dataclass(frozen=True)
class Sample:
    """A measurement and the most memory that its process had, in MB; on a GPU that of the GPU."""

    measured: Measured
    memory: float


def run(name: str, benchmark: Benchmark, rounds: int, cases: Sequence[str], contenders: Sequence[str]) -> Iterator[str]:
    """Measure, and give the report line by line."""
    yield f"{benchmark.title}; {benchmark.unit}, medians of {rounds}"
    yield machine()
    for case in cases:
        samples: dict[str, list[Sample]] = {contender: [] for contender in contenders}
        for number in range(rounds):
            for contender in contenders if number % 2 == 0 else reversed(contenders):
                samples[contender].append(_in_a_process(name, case, contender))
                print(f"{name} {case} round {number + 1} {contender}: {_figure(samples[contender][-1].measured.value)}",
                      file=sys.stderr, flush=True)  # fmt: skip
        yield from _table(benchmark, case, samples)


def measure(benchmark: Benchmark, case: str, contender: str) -> None:
    """Make one measurement in this process, and print it for the one that has started it."""
    measured = benchmark.contenders[contender](case)
    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    if torch.cuda.is_initialized():
        memory = torch.cuda.max_memory_allocated() / 2**20
    print(RESULT + json.dumps({"value": measured.value, "facts": dict(measured.facts), "memory": memory}))


def _in_a_process(name: str, case: str, contender: str) -> Sample:
    command = [sys.executable, "-m", "benchmarks", name, "--measure", case, contender]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "WANDB_MODE": "disabled"})
    lines = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    found = json.loads(lines[-1].removeprefix(RESULT))
    return Sample(Measured(found["value"], found["facts"]), found["memory"])


def _table(benchmark: Benchmark, case: str, samples: Mapping[str, list[Sample]]) -> Iterator[str]:
    width = max(map(len, samples))
    yield ""
    yield f"{case:<{width}}{'median':>12}{'min':>12}{'max':>12}{'ratio':>8}{'memory':>11}"
    medians = {name: statistics.median(sample.measured.value for sample in found) for name, found in samples.items()}
    for name, found in samples.items():
        values = [sample.measured.value for sample in found]
        ratio = medians[name] / medians.get(benchmark.baseline, medians[name])
        shown = ratio if benchmark.higher_is_better else 1 / ratio
        memory = statistics.median(sample.memory for sample in found)
        line = "".join(f"{_figure(value):>12}" for value in (medians[name], min(values), max(values)))
        facts = found[-1].measured.facts
        said = "  ".join(f"{key} {value if isinstance(value, str) else _figure(value)}" for key, value in facts.items())
        yield f"{name:<{width}}{line}{shown:>8.2f}{memory:>8,.0f} MB  {said}".rstrip()


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
