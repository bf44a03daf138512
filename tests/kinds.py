"""Kinds of tests: `unit`, which start no process, `distributed`, which do, `slurm` and `gpu`.

A test is marked by its folder, or because its code, that of its fixtures or of what they call in this folder starts a
process. Where only the package does, the test has an explicit marker; `guard` fails a unit test that starts one.
"""

from __future__ import annotations

import multiprocessing.process
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

TESTS = Path(__file__).parent
BY_FOLDER = {"slurm": "slurm", "gpu": "gpu", "simulated_gpu": "gpu"}
KINDS = ("unit", "distributed", "slurm", "gpu")
STARTERS = {
    subprocess: {"Popen", "call", "check_call", "check_output", "run"},
    os: {"execv", "execve", "fork", "popen", "posix_spawn", "system"},
}
"""Functions by module that start a process."""

_known: dict[types.CodeType, bool] = {}


def mark(item: pytest.Item) -> None:
    """Give a test the marker of its kind, if it has none."""
    if any(item.get_closest_marker(kind) for kind in KINDS):
        return
    folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
    item.add_marker(BY_FOLDER.get(folder) or ("distributed" if _uses_processes(item) else "unit"))


@contextmanager
def guard(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail whoever starts a process in here."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        pytest.fail(f"a unit test starts a process: mark it as distributed ({args[1] if len(args) > 1 else args})")

    with patch.context() as patched:
        patched.setattr(subprocess.Popen, "__init__", refuse)
        patched.setattr(subprocess.Popen, "__del__", lambda self: None)
        patched.setattr(multiprocessing.process.BaseProcess, "start", refuse)
        for name in STARTERS[os]:
            patched.setattr(os, name, refuse)
        yield


def _uses_processes(item: pytest.Item) -> bool:
    fixtures = getattr(item, "_fixtureinfo", None)
    definitions = [each[-1] for name, each in fixtures.name2fixturedefs.items() if each] if fixtures else []
    functions = [getattr(item, "function", None), *(definition.func for definition in definitions)]
    return any(starts_process(function) for function in functions if function is not None)


def starts_process(function: Callable) -> bool:
    """Return True if a function of this folder, or one that it names, starts a process."""
    function = getattr(function, "__wrapped__", function)
    code = getattr(function, "__code__", None)
    return code is not None and _is_here(code.co_filename) and _code_starts(code, function.__globals__)


def _code_starts(code: types.CodeType, names: dict[str, Any]) -> bool:
    if code not in _known:
        _known[code] = False  # while it is looked at: functions may name each other
        inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
        named = [names[name] for name in code.co_names if name in names]
        _known[code] = any(_code_starts(each, names) for each in inner) or any(_starts(each, code) for each in named)
    return _known[code]


def _starts(named: Any, code: types.CodeType) -> bool:
    """Return True if code names a module whose starter it uses, a starter, or a function here that starts a process."""
    if isinstance(named, types.ModuleType):
        if named in STARTERS:
            return bool(STARTERS[named] & set(code.co_names))
        members = [getattr(named, name, None) for name in code.co_names] if _is_here(named.__dict__.get("__file__")) else []
        return any(_starts(member, code) for member in members if not isinstance(member, types.ModuleType))
    if any(named is getattr(module, name) for module, functions in STARTERS.items() for name in functions):
        return True
    if isinstance(named, type):
        module = sys.modules.get(named.__module__)
        return _is_here(getattr(module, "__file__", None)) and any(map(starts_process, vars(named).values()))
    return isinstance(named, types.FunctionType) and starts_process(named)


def _is_here(file: str | None) -> bool:
    return file is not None and Path(file).is_relative_to(TESTS) and file != __file__
