"""Mutation tests: mutmut's commands on a sample of mutants, and a report.

mutmut changes one operator, argument or constant of the package at a time and runs the unit tests that reach it. A mutant
that no test detects shows what is not asserted (`docs/mutation.md`). Trade-off: the sample, fixed by `SEED`, takes minutes
where all mutants take hours, and misses some survivors.

    python tests/mutation/mutants.py run --max-children 1
    python tests/mutation/mutants.py report
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import libcst as cst
import mutmut.__main__ as mutmut_cli
from mutmut.mutation import file_mutation
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.mutation.file_mutation import Mutation, MutationVisitor
from mutmut.runners.harness import BadTestExecutionCommandsException, PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.workers import isolation

SEED = "ulmfit"
"""Seed of the sample; another value draws other mutants."""
PER_FILE = 40
"""Maximum number of mutants of a file."""
MESSAGES = {"BadCell", "BadRow", "fail", "logger", "print", "warn"}
"""Calls whose arguments are text for a user."""
TYPES = {"cast"}
"""Calls that only a type checker evaluates."""
TEXTS = {"advice", "changed", "described", "near", "possible", "ranks", "reason"}
"""Variables that hold parts of messages."""
TESTS_PASSED, TESTS_FAILED, SUSPICIOUS = 0, 1, 35
"""Exit codes of pytest, and mutmut's code of a run that decides nothing."""


class Visitor(MutationVisitor):
    """Creates the mutants of a file, except those that change only a message, a type or an assertion."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        return _is_text(node) or _is_strict(node) or super()._skip_node_and_children(node)

    def _create_mutations(self, node: cst.CSTNode) -> None:
        first = len(self.mutations)
        super()._create_mutations(node)
        if isinstance(node, cst.BaseString):  # a test that detects another text detects other letter cases
            del self.mutations[first + 1 :]
        strict = [_code(child) for child in node.children if _is_strict(child)]
        self.mutations[first:] = [
            mutation
            for mutation in self.mutations[first:]
            if strict == [_code(child) for child in mutation.mutated_node.children if _is_strict(child)]
        ]


class QuickestFirst(PytestRunner):
    """Runs the tests of a mutant in the order of their durations until one fails; only a failed test kills."""

    def run_tests(self, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        durations = state().duration_by_test
        in_order = sorted(tests, key=lambda test: (durations.get(test, 0), test))
        try:
            exit_code = super().run_tests(mutant_name=mutant_name, tests=in_order)
        except BadTestExecutionCommandsException:
            return SUSPICIOUS
        return exit_code if exit_code in (TESTS_PASSED, TESTS_FAILED) else SUSPICIOUS


def sample_mutations(*arguments: Any) -> tuple[cst.Module, list[Mutation], set[str], set[str]]:
    """Return what mutmut's `create_mutations` does, with a sample of the mutants."""
    module, mutations, *ignored = _create_mutations(*arguments)
    in_functions = [each for each in mutations if isinstance(each.contained_by_top_level_function, cst.FunctionDef)]
    return module, _sampled(in_functions), *ignored


def _sampled(mutations: list[Mutation]) -> list[Mutation]:
    """Return the mutants with the lowest hashes, in order; a change in one function keeps the sample of the others."""
    occurrences: Counter[str] = Counter()
    digests = []
    for mutation in mutations:
        function = mutation.contained_by_top_level_function
        assert function is not None
        text = f"{function.name.value}|{_code(mutation.original_node)}|{_code(mutation.mutated_node)}"
        occurrences[text] += 1
        digests.append(hashlib.sha256(f"{SEED}|{text}|{occurrences[text]}".encode()).hexdigest())
    chosen = set(sorted(digests)[:PER_FILE])
    return [mutation for digest, mutation in zip(digests, mutations, strict=True) if digest in chosen]


def _is_text(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Raise):
        return True
    if isinstance(node, cst.Assign):
        return any(isinstance(target.target, cst.Name) and target.target.value in TEXTS for target in node.targets)
    return isinstance(node, cst.Call) and bool(set(_names(node.func)) & (MESSAGES | TYPES))


def _is_strict(node: cst.CSTNode) -> bool:
    """Return True for `strict=True` of `zip`, which asserts that two lengths are equal."""
    return isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == "strict"


def _names(function: cst.BaseExpression) -> Iterator[str]:
    if isinstance(function, cst.Name):
        yield function.value
    elif isinstance(function, cst.Attribute):
        yield from _names(function.value)


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


@mutmut_cli.cli.command()
def report() -> None:
    """Print a table of the files, and the mutants that live, in Markdown."""
    rows, lines, total = [], [], Counter[str]()
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        statuses = {name: status_by_exit_code[code] for name, code in data.exit_code_by_key.items()}
        counts = Counter(statuses.values())
        rows.append((path.relative_to("ulmfit_dist").as_posix(), counts))
        total += counts
        lines += [_describe(path, name, status) for name, status in statuses.items() if status not in ("killed", "timeout")]
    print("| file | mutants | killed | timeout | % |\n| --- | ---: | ---: | ---: | ---: |")
    for name, counts in [*sorted(rows, key=lambda row: row[0]), ("**all**", total)]:
        detected, mutants = counts["killed"] + counts["timeout"], sum(counts.values())
        print(f"| {name} | {mutants} | {counts['killed']} | {counts['timeout']} | {100 * detected / mutants:.0f} |")
    print("", *lines, sep="\n")


def _describe(path: Path, name: str, status: str) -> str:
    """Return a line with the place of a mutant, and its change."""
    diff = get_diff_for_mutant(name, path=path).splitlines()
    header = next(line for line in diff if line.startswith("@@"))
    before = diff[diff.index(header) + 1 :]
    number = int(re.findall(r"\d+", header)[0]) + next(i for i, line in enumerate(before) if line.startswith("-"))
    removed, added = (" ".join(line[1:].strip() for line in before if line.startswith(sign)) for sign in "-+")
    *owner, function = name.rpartition(".")[2].partition("__mutmut_")[0].removeprefix("x_").removeprefix("xǁ").split("ǁ")
    first = _first_line(path, "".join(owner), function)
    return f"* {status}, `{path.relative_to('ulmfit_dist')}:{first + number - 1}`: `{removed}` → `{added}`"


def _first_line(path: Path, owner: str, function: str) -> int:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner] if owner else [tree]
    return next(
        node.lineno for body in bodies for node in body.body if isinstance(node, ast.FunctionDef) and node.name == function
    )


_create_mutations, file_mutation.create_mutations = file_mutation.create_mutations, sample_mutations
file_mutation.MutationVisitor = Visitor
isolation.PytestRunner = QuickestFirst

if __name__ == "__main__":
    mutmut_cli.cli()
