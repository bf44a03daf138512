"""Pytest plugin of `bash launch/test.sh --simulated-gpu`: tests run on the simulated GPU, and none is skipped silently.

Tests marked `real_gpu` are deselected, and reported with the reason of their marker. A run of the whole suite also fails if
a test was skipped, if fewer than `FEWEST_TESTS` passed, or if a line of the package that only a GPU reaches was not
executed (`line_coverage.py`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401  first, because its import installs the simulated GPU

from simulated_gpu import line_coverage
from simulated_gpu.counters import COUNTERS, MEMORY, Counters

FEWEST_TESTS = 60
WHOLE_SUITE = "ULMFIT_DIST_WHOLE_SIMULATED_SUITE"
"""Environment variable that launch/test.sh sets for a run of all tests."""

DESELECTED: dict[str, str] = {}
"""Reasons of deselected tests, from all processes."""


def is_whole_suite() -> bool:
    return bool(os.environ.get(WHOLE_SUITE))


def pytest_configure(config: pytest.Config) -> None:
    if is_whole_suite() and not is_worker(config):
        line_coverage.prepare(os.environ)
    if is_whole_suite() and (is_worker(config) or not config.getoption("numprocesses", None)):
        line_coverage.start()


def is_worker(config: pytest.Config) -> bool:
    """Return whether this is a worker process of pytest-xdist."""
    return hasattr(config, "workerinput")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("real_gpu")]
    for item in marked:
        DESELECTED[item.nodeid.split("[")[0]] = item.get_closest_marker("real_gpu").kwargs["reason"]
    items[:] = [item for item in items if item not in marked]
    config.hook.pytest_deselected(items=marked)
    if is_worker(config):
        config.workeroutput["deselected"] = DESELECTED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    DESELECTED.update(getattr(node, "workeroutput", {}).get("deselected", {}))


@pytest.fixture(autouse=True)
def simulated_gpu() -> Iterator[Counters]:
    """Yield the simulated GPU's counters, cleared before each test, and allow waits again after it."""
    COUNTERS.clear()
    MEMORY.reset_peak()
    limit = MEMORY.limit
    yield COUNTERS
    COUNTERS.sync_mode, MEMORY.limit = "default", limit


def pytest_sessionfinish(session: pytest.Session) -> None:
    line_coverage.save()
    if is_whole_suite() and session.exitstatus == pytest.ExitCode.OK and not is_worker(session.config):
        problems = [*_problems(session.config), *line_coverage.problems(line_coverage.measured())]
        if problems:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _problems(config: pytest.Config) -> list[str]:
    stats = config.pluginmanager.get_plugin("terminalreporter").stats
    passed, skipped = len(stats.get("passed", ())), stats.get("skipped", [])
    problems = [f"skipped: {report.nodeid}: {report.longrepr}" for report in skipped]
    if passed < FEWEST_TESTS:
        problems.append(f"{passed} tests passed, and there must be at least {FEWEST_TESTS}")
    return problems


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    write = terminalreporter.write_line
    terminalreporter.section("simulated GPU")
    for test, reason in sorted(DESELECTED.items()):
        write(f"deselected: {Path(test).name}: {reason}")
    write(f"simulated GPU: {len(terminalreporter.stats.get('passed', ()))} tests passed")
    if is_whole_suite():
        for line in line_coverage.summary(line_coverage.measured()):
            write(line)
        for problem in _problems(config):
            write(f"error: {problem}")
