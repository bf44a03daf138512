"""Whether the tests on the simulated GPU execute every line of the package that only a GPU reaches.

All processes of the suite leave in one folder the lines that they executed; the first process adds them up.
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
"""Environment variable that names the folder; nothing is measured without it."""

ALLOWED: dict[str, str] = {}
"""Lines that need not be executed: `file.py: source of the line`, and why no simulated GPU can execute it."""

MEASUREMENTS: list[coverage.Coverage] = []
"""That of this process, while it goes on."""


def prepare(environment: MutableMapping[str, str]) -> None:
    """Have this process and those that it starts measure."""
    environment[FOLDER] = tempfile.mkdtemp(prefix="ulmfit-dist-gpu-coverage-")


def start() -> None:
    """Measure in this process until its end, if `prepare` was called in it or in the one that has started it."""
    if FOLDER not in os.environ or MEASUREMENTS:
        return
    include = [str(path) for path in gpu_only_lines(PACKAGE)]
    data_file = str(Path(os.environ[FOLDER]) / "lines")
    MEASUREMENTS.append(coverage.Coverage(data_file=data_file, data_suffix=True, include=include, config_file=False))
    MEASUREMENTS[0].start()
    atexit.register(save)


def save() -> None:
    """End the measurement of this process and leave what it has found."""
    while MEASUREMENTS:
        measurement = MEASUREMENTS.pop()
        measurement.stop()
        measurement.save()


def measured() -> dict[Path, set[int]]:
    """Lines that were executed, by file."""
    found: dict[Path, set[int]] = {}
    for path in Path(os.environ[FOLDER]).glob("lines.*"):
        data = coverage.CoverageData(str(path))
        data.read()
        for file in data.measured_files():
            found.setdefault(Path(file), set()).update(data.lines(file) or ())
    return found


def missing(executed: dict[Path, set[int]]) -> list[tuple[Path, Statement]]:
    """Statements that only a GPU reaches and that were not executed."""
    return [
        (path, statement)
        for path, statements in gpu_only_lines(PACKAGE).items()
        for statement in statements
        if not executed.get(path, set()).intersection(range(statement.first, statement.last + 1))
    ]


def _key(path: Path, statement: Statement) -> str:
    return f"{path.relative_to(PACKAGE).as_posix()}: {statement.source}"


def problems(executed: dict[Path, set[int]]) -> list[str]:
    """One for each statement that is missing, and for each entry of `ALLOWED` that is not needed."""
    absent = missing(executed)
    keys = {_key(path, statement) for path, statement in absent}
    found = [
        f"not executed by any test: {path.relative_to(PACKAGE.parent)}:{statement.first}: {statement.source}"
        for path, statement in absent
        if _key(path, statement) not in ALLOWED
    ]
    return found + [f"ALLOWED names a line that is executed, or gone: {key}" for key in ALLOWED if key not in keys]


def summary(executed: dict[Path, set[int]]) -> list[str]:
    """What to print: how many statements of each file were executed, and those that were not."""
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
