"""Coverage of the lines of the package that only a GPU reaches, by the tests on the simulated GPU.

All processes of the suite write the lines that they executed to one folder; the first process merges them.
"""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

import coverage

from simulated_gpu.gpu_only_lines import Statement, gpu_only_lines

PACKAGE = Path(__file__).resolve().parents[2] / "ulmfit_dist"
FOLDER = "ULMFIT_DIST_GPU_COVERAGE"
"""Environment variable with the folder; without it nothing is measured."""

ALLOWED: dict[str, str] = {}
"""Lines that need not be executed: `file.py: source of the line`, and the reason why no simulated GPU can execute it."""

MEASUREMENTS: list[coverage.Coverage] = []
"""Running measurement of this process."""


def prepare(environment: MutableMapping[str, str]) -> None:
    """Enable the measurement in this process and its children."""
    environment[FOLDER] = tempfile.mkdtemp(prefix="ulmfit-dist-gpu-coverage-")


def start() -> None:
    """Measure in this process until its end, if `prepare` was called in it or in its parent."""
    if FOLDER not in os.environ or MEASUREMENTS:
        return
    include = [str(path) for path in gpu_only_lines(PACKAGE)]
    data_file = str(Path(os.environ[FOLDER]) / "lines")
    MEASUREMENTS.append(coverage.Coverage(data_file=data_file, data_suffix=True, include=include, config_file=False))
    MEASUREMENTS[0].start()
    atexit.register(save)


def save() -> None:
    """End the measurement of this process, and write its result."""
    while MEASUREMENTS:
        measurement = MEASUREMENTS.pop()
        measurement.stop()
        measurement.save()


def measured() -> dict[Path, set[int]]:
    """Return the executed lines, by file."""
    actual: dict[Path, set[int]] = {}
    for path in Path(os.environ[FOLDER]).glob("lines.*"):
        data = coverage.CoverageData(str(path))
        data.read()
        for file in data.measured_files():
            actual.setdefault(Path(file), set()).update(data.lines(file) or ())
    return actual


def missing(executed: dict[Path, set[int]]) -> list[tuple[Path, Statement]]:
    """Return the statements that only a GPU reaches and that were not executed."""
    return [
        (path, statement)
        for path, statements in gpu_only_lines(PACKAGE).items()
        for statement in statements
        if not executed.get(path, set()).intersection(range(statement.first, statement.last + 1))
    ]


def _key(path: Path, statement: Statement) -> str:
    return f"{path.relative_to(PACKAGE).as_posix()}: {statement.source}"


def problems(executed: dict[Path, set[int]]) -> list[str]:
    """Return a message per missing statement, and per unnecessary entry of `ALLOWED`."""
    absent = missing(executed)
    keys = {_key(path, statement) for path, statement in absent}
    actual = [
        f"not executed by any test: {path.relative_to(PACKAGE.parent)}:{statement.first}: {statement.source}"
        for path, statement in absent
        if _key(path, statement) not in ALLOWED
    ]
    return actual + [f"ALLOWED names a line that is executed, or gone: {key}" for key in ALLOWED if key not in keys]


def summary(executed: dict[Path, set[int]]) -> list[str]:
    """Return the report: numbers of executed statements by file, and the missing ones."""
    wanted, absent = gpu_only_lines(PACKAGE), missing(executed)
    total = sum(map(len, wanted.values()))
    lines = [f"{total - len(absent)} of {total} statements that only a GPU reaches were executed"]
    for path, statements in wanted.items():
        num_missing = sum(other == path for other, _ in absent)
        lines.append(f"    {path.relative_to(PACKAGE.parent)}: {len(statements) - num_missing} of {len(statements)}")
    for path, statement in absent:
        if _key(path, statement) in ALLOWED:
            lines.append(f"    not executed: {_key(path, statement)} ({ALLOWED[_key(path, statement)]})")
    return lines + [f"error: {problem}" for problem in problems(executed)]
