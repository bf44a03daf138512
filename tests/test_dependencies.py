"""Dependencies: what the package imports is declared, constraints.txt pins it, and messages name extras that exist."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LOCK = ROOT / "constraints.txt"
SET_UP = ("demo", "sentencepiece", "dev")
"""Extras that launch/setup.sh installs."""
NAME_ON_PYPI = {"google": "protobuf", "mlflow": "mlflow-skinny", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Distributions by a module of theirs that has another name."""
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ONLY_FOR_NOTEBOOKS = {"ipykernel", "nbclient"}
"""Requirements without pins for Python 3.10, whose versions of them need another set of pins."""


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(extras: Iterable[str]) -> list[Requirement]:
    """Return the project's requirements with these extras, as pip reads them; extras may name extras."""
    optional = project()["optional-dependencies"]
    lines = list(map(Requirement, project()["dependencies"]))
    todo = list(extras)
    for extra in todo:
        for requirement in map(Requirement, optional[extra]):
            if requirement.name == "ulmfit-dist":
                todo += [name for name in requirement.extras if name not in todo]
            else:
                lines.append(requirement)
    return lines


def closure(requirements: Sequence[Requirement]) -> set[str]:
    """Return the names of all distributions that these requirements install here, from the metadata of this environment."""
    seen: set[tuple[str, str]] = set()
    todo = list(requirements)
    for requirement in todo:
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needed = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                continue  # not installed here
            todo += [each for each in map(Requirement, needed) if not each.marker or each.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


@functools.cache
def pins() -> list[Requirement]:
    return [Requirement(line) for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]


@functools.cache
def pinned(python: str) -> dict[str, str]:
    """Return the version by name that the lock file has for a Python; a name that it has twice is an error."""
    chosen = [pin for pin in pins() if not pin.marker or pin.marker.evaluate({"python_version": python})]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in chosen}
    assert len(versions) == len(chosen)
    return versions


def test_every_distribution_that_the_set_up_installs_is_pinned():
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    needed = closure(requirements(SET_UP))
    assert len(needed) > 100
    missing = {name for name in needed - pinned(python).keys() if not re.match(r"(nvidia|cuda)-", name)}  # torch pins those
    assert missing == set(), "pin them in constraints.txt, as described at its top"


def test_the_lock_file_pins_one_version_per_python_that_the_project_accepts():
    names = [canonicalize_name(pin.name) for pin in pins()]
    assert names == sorted(names)
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) and not pin.url for pin in pins())
    bounds = {canonicalize_name(requirement.name): requirement.specifier for requirement in requirements(SET_UP)}
    for python in PYTHONS:
        missing = bounds.keys() - pinned(python).keys()
        assert missing == (ONLY_FOR_NOTEBOOKS if python == "3.10" else set())
        assert [name for name in bounds.keys() - missing if not bounds[name].contains(pinned(python)[name])] == []


def test_every_import_of_the_package_is_a_declared_dependency():
    declared = {canonicalize_name(requirement.name) for requirement in requirements(["all"])}
    imported = {canonicalize_name(NAME_ON_PYPI.get(module, module)): path for path, module in imports()}
    assert {name: path for name, path in imported.items() if name not in declared} == {}
    assert len(imported) > 20


def test_messages_and_docs_name_extras_that_exist():
    texts = [*(ROOT / "ulmfit_dist").rglob("*.py"), *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*.yaml")]
    in_texts = {
        extra
        for path in texts
        for extras in re.findall(r"ulmfit-dist\[([\w, -]+)\]", path.read_text(encoding="utf-8"))
        for extra in re.split(r", *", extras)
    }
    assert {"demo", "language", "onnx", "sentencepiece", "wandb-dashboard"} <= in_texts
    assert in_texts <= project()["optional-dependencies"].keys()


def imports() -> Iterator[tuple[Path, str]]:
    """Yield (file, top-level module) of the imports of other packages."""
    for path in (ROOT / "ulmfit_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for module in (module.partition(".")[0] for module in modules):
                if module not in sys.stdlib_module_names and module != "ulmfit_dist":
                    yield path, module
