"""Mutation tests: mutmut's commands, for a sample of mutants.

mutmut changes one operator, argument or constant of the package at a time and runs the unit tests that reach it: a mutant
that no test notices shows what is not asserted. `docs/mutation.md` describes how to run it and lists the survivors. Trade-off:
a sample, fixed by `SEED`, takes a fraction of the time and misses some survivors.

    python tests/mutation/mutants.py run --max-children 1
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import libcst as cst
import mutmut.__main__ as cli
from mutmut.configuration import config
from mutmut.mutation import file_mutation
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.file_mutation import Mutation, MutationVisitor
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.workers import isolation

SEED = "ulmfit"
"""Seed of the sample: another value draws other mutants."""
PER_FILE = 40
"""Maximum number of mutants of a file."""
MESSAGES = {"BadCell", "BadRow", "fail", "logger", "print", "warn"}
"""Names of calls whose arguments are text for a user."""
TEXTS = {"advice", "changed", "near", "possible", "ranks", "described"}
"""Variables that hold parts of messages."""


class Visitor(MutationVisitor):
    """Creates the mutants of a file, except those that change a message, a type or an assertion only."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        return _is_text(node) or _is_strict(node) or super()._skip_node_and_children(node)

    def _create_mutations(self, node: cst.CSTNode) -> None:
        first = len(self.mutations)
        super()._create_mutations(node)
        if isinstance(node, cst.BaseString):  # another case of the letters is noticed by the tests that notice another text
            del self.mutations[first + 1 :]
        strict = [_code(child) for child in node.children if _is_strict(child)]
        self.mutations[first:] = [
            mutation
            for mutation in self.mutations[first:]
            if strict == [_code(child) for child in mutation.mutated_node.children if _is_strict(child)]
        ]


def _is_strict(node: cst.CSTNode) -> bool:
    """Return True for `strict=True` of `zip`, which asserts that two lengths are equal."""
    return isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == "strict"


def _is_text(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Raise):
        return True
    if isinstance(node, cst.Assign):
        return any(isinstance(target.target, cst.Name) and target.target.value in TEXTS for target in node.targets)
    if isinstance(node, cst.Call):
        return any(name.value in (MESSAGES | {"cast"}) for name in _names(node.func))
    return False


def _names(function: cst.BaseExpression) -> Iterable[cst.Name]:
    if isinstance(function, cst.Name):
        yield function
    elif isinstance(function, cst.Attribute):
        yield from _names(function.value)


def sampled(mutations: list[Mutation]) -> list[Mutation]:
    """Return the mutants of the sample, in order; a change of one function leaves the sample of others as it is."""
    seen: Counter[str] = Counter()
    keys = []
    for mutation in mutations:
        function = mutation.contained_by_top_level_function
        name = function.name.value if isinstance(function, cst.FunctionDef) else ""
        text = f"{name}|{_code(mutation.original_node)}|{_code(mutation.mutated_node)}"
        seen[text] += 1
        keys.append(hashlib.sha256(f"{SEED}|{text}|{seen[text]}".encode()).hexdigest())
    chosen = set(sorted(keys)[:PER_FILE])
    return [mutation for key, mutation in zip(keys, mutations, strict=True) if key in chosen]


def create_mutations(*arguments: object) -> tuple[cst.Module, list[Mutation], set[str], set[str]]:
    """Return what mutmut's function of this name does, with the sample of its mutants."""
    module, mutations, *ignored = _create_all(*arguments)
    return (
        module,
        sampled([each for each in mutations if isinstance(each.contained_by_top_level_function, cst.FunctionDef)]),
        *ignored,
    )


class QuickestFirst(PytestRunner):
    """Runs the tests of a mutant in the order of their durations, until one fails."""

    def run_tests(self, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        durations = state().duration_by_test
        return super().run_tests(
            mutant_name=mutant_name, tests=sorted(tests, key=lambda test: (durations.get(test, 0), test))
        )


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


_create_all, file_mutation.create_mutations = file_mutation.create_mutations, create_mutations
file_mutation.MutationVisitor = Visitor
isolation.PytestRunner = QuickestFirst

if __name__ == "__main__":
    cli.cli()
