"""Imports between packages run downward only."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / "ulmfit_dist"
BASE = {"config", "pretrained", "utils", "errors"}
MAY_IMPORT = {
    "launch": {"cli", "data", "distributed", *BASE},
    "cli": {
        *("recipes", "doctor", "export", "stages", "report", "inference", "tracking", "models"),
        *("data", "distributed", *BASE),
    },
    "api": {"recipes", "stages", "training", "inference", "models", "data", "distributed", *BASE},
    "recipes": {"stages", "models", "data", "distributed", *BASE},
    "doctor": {"stages", "training", "tracking", "models", "data", "distributed", "rng", *BASE},
    "export": {"inference", "models", "data", *BASE},
    "stages": {
        *("report", "checkpointing", "training", "inference", "tracking", "metrics"),
        *("models", "data", "distributed", "rng", *BASE),
    },
    "report": {"tracking", "metrics", "data", *BASE},
    "checkpointing": {"training", "tracking", "models", "data", "distributed", *BASE},
    "training": {"tracking", "metrics", "models", "data", "distributed", *BASE},
    "inference": {"metrics", "models", "data", "distributed", *BASE},
    "tracking": {"metrics", "data", "distributed", *BASE},
    "metrics": {"models", "data", "distributed", "rng", *BASE},
    "models": {"data", "distributed", "rng", "cuda", *BASE},
    "data": {"distributed", "rng", *BASE},
    "distributed": BASE,
    "config": {"pretrained", "utils", "errors"},
    "pretrained": {"utils", "errors"},
    "utils": {"errors"},
    "rng": {"cuda"},
    "cuda": set(),
    "errors": set(),
}
"""Each package with those that it may import: all of them stand below it."""
TRAINS = {"training", "checkpointing", "stages", "doctor"}
"""Packages that import fastai, the learner's library, as soon as they are imported."""


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the modules of ulmfit_dist that a file imports, inside of functions too."""
    yield from imported_by(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def imported_by(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports_between_packages() -> dict[tuple[str, str], set[str]]:
    """Return the files by (package, package that they import)."""
    edges = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        package = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module in imported_modules(path):
            name, *rest = module.split(".")
            if name == "ulmfit_dist" and rest and rest[0] in MAY_IMPORT and rest[0] != package:
                edges[package, rest[0]].add(str(path.relative_to(PACKAGE)))
    return edges


def test_the_table_runs_downward():
    level = {package: i for i, package in enumerate(MAY_IMPORT)}
    upward = [(package, other) for package in level for other in MAY_IMPORT[package] if level[other] <= level[package]]
    assert upward == []


def test_each_package_imports_only_packages_below_it():
    edges = imports_between_packages()
    assert len(edges) > 50
    upward = {edge: files for edge, files in edges.items() if edge[1] not in MAY_IMPORT.get(edge[0], MAY_IMPORT)}
    assert upward == {}


def test_every_package_is_in_the_table():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages - MAY_IMPORT.keys() == set()


def test_only_packages_that_train_import_fastai():
    actual = set()
    for path in PACKAGE.rglob("*.py"):
        at_import = imported_by(ast.parse(path.read_text(encoding="utf-8")).body)
        if any(module.split(".")[0] in ("fastai", "fastcore") for module in at_import):
            actual.add(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    assert actual == TRAINS
