"""Words and phrases that the project does not use, and openings of docstrings (docs/style.md)."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

OLD_NAMES = """
Batches LMBatches ClassifierBatches StageFolder CheckpointWriter DamagedError LearnerState RecipePosition StagePosition Laps
RateRange Exported OwnMetrics Growing Ragged Lexicon StopRequest StoreBuilder WrongPrediction EpochRows TextFiles
from_main tensors_from_main copy_from_main sum_by_pairs leave_at_end renew_scaler quieten open_door watch_from share_of_rank
moved_ahead by_hand take_best tables_of has_export virtual_ranks compress_gradients no_label get_label local_cache
shard_documents arch_options truncate_to every_minutes every_steps log_every laps trust_rules
""".split()
"""Identifiers of earlier versions."""

OLD_VARIABLES = {"found", "said", "told", "mine", "theirs", "facts"}
"""Variables that do not name what they hold."""

PHRASES = [
    r"go(es|ing)? on\b(?! (a|the|each|every|its|one|to the (GPU|device)))",
    r"\banew\b",
    r"\bmend(s|ed|ing)?\b",
    r"\bat hand\b",
    r"\bof like (length|size)",
    r"\bby hand\b",
    r"\bmade[- ]up\b",
    r"\bof (one's|its|their|his) own\b(?= (kind|sort|making))",
    r"\bof yours\b",
    r"\bis (asked|told)\b",
    r"\bno fewer than\b",
    r"\bset aside\b",
    r"\blike cards\b",
    r"\bthe (plain|slow|fast) way\b",
    r"\bthe price (of|is)\b",
    r"\bhas come to its end\b",
    r"\bis no (finite|whole|plain|longer there)\b",
]
"""Regular expressions of phrases that a reader of English stumbles over, or that have a standard term."""

OPENINGS = ("What", "Who", "Whose", "Whether", "Where", "Of", "Which", "How")
"""First words that leave open what a thing is or does."""

EXEMPT = {"CHANGELOG.md", "docs/style.md", "tests/test_style.py"}


def tracked(*patterns: str) -> list[Path]:
    """Return the project's files of these patterns."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns], cwd=ROOT, capture_output=True, text=True
    )
    paths = [ROOT / name for name in listed.stdout.splitlines()] or [p for pattern in patterns for p in ROOT.rglob(pattern)]
    return [path for path in paths if path.is_file() and str(path.relative_to(ROOT)) not in EXEMPT]


def python_files() -> list[Path]:
    return tracked("ulmfit_dist/*.py", "tests/*.py", "benchmarks/*.py", "examples/*.py")


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of each docstring, those below attributes included."""
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if not isinstance(node, (ast.Lambda, ast.IfExp)) else []:
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value


def names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of every variable, parameter, attribute, function and class."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.arg | ast.keyword) and node.arg is not None:
            yield line, node.arg
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield line, node.name


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in python_files()}


def test_no_name_of_an_earlier_version_is_used(trees: dict[Path, ast.Module]):
    old = {*OLD_NAMES, *OLD_VARIABLES}
    hits = [f"{place(path, line)} {name}" for path, tree in trees.items() for line, name in names(tree) if name in old]
    assert not hits, f"{len(hits)} names:\n" + "\n".join(hits)


def test_no_key_of_an_earlier_version_is_in_the_docs():
    pattern = re.compile(rf"\b({'|'.join(OLD_NAMES)})\b")
    hits = [
        f"{place(path, 0)} {match[0]}" for path in tracked("*.md", "*.yaml") for match in pattern.finditer(path.read_text())
    ]
    assert not hits, "\n".join(hits)


def test_no_docstring_opens_with_a_question_word(trees: dict[Path, ast.Module]):
    hits = [
        f"{place(path, line)} {text.split()[0]}"
        for path, tree in trees.items()
        for line, text in docstrings(tree)
        if text.split() and text.split()[0].rstrip(",:") in OPENINGS
    ]
    assert not hits, f"{len(hits)} docstrings:\n" + "\n".join(hits)


def test_no_phrase_of_the_list_is_used():
    pattern = re.compile("|".join(PHRASES), re.IGNORECASE)
    hits = []
    for path in (*python_files(), *tracked("*.md", "*.yaml", "*.sh", "*.sbatch", "*.ipynb")):
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            hits += [f"{place(path, line)} {match[0]}" for match in pattern.finditer(text)]
    assert not hits, f"{len(hits)} phrases:\n" + "\n".join(hits)
