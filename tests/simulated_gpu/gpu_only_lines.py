"""Lines of the package that no run on a CPU reaches, found in its source.

A branch is for GPUs only if its condition has one value on every CPU: `x.is_cuda`, `device.type == "cuda"`,
`torch.cuda.is_available()`, `has_gpu`, `scaler is not None`, and names that are assigned such conditions. So are statements
after an `if device.type == "cpu": return`, and functions that only such lines use. A conditional expression with such a
condition counts as a line. The trade-off: the analysis reads names, not types, so it finds most branches, not all.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

GPU_NAME = re.compile(r"^_?((is|has|on|uses|needs|with|are|all)_)*(gpus?|cuda)(_available)?$")
"""Names of booleans that are true on a GPU."""

LEAVING = (ast.Return, ast.Raise, ast.Continue, ast.Break)
WITHOUT_CODE = (ast.Global, ast.Nonlocal, ast.Pass, ast.Continue)
"""Statements that coverage does not record, or not in every version of Python."""


@dataclass
class Module:
    """Source file.

    Attributes:
        values: names and attributes that have one value on every CPU.
        lines: first lines of the statements that only GPUs reach, with their last lines.
        partly: those of statements with a conditional expression of which only GPUs reach one side.
    """

    path: Path
    tree: ast.Module
    values: dict[str, bool] = field(default_factory=dict)
    lines: dict[int, int] = field(default_factory=dict)
    partly: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Statement:
    """First and last line of a statement, without the blocks in it, and the source of the first line."""

    first: int
    last: int
    source: str


def gpu_only_lines(package: Path) -> dict[Path, list[Statement]]:
    """Return the statements that only GPUs reach, by file; files without any are omitted."""
    modules = [Module(path, ast.parse(path.read_text())) for path in sorted(package.rglob("*.py"))]
    for module in modules:
        module.values = known_names(module.tree)
        walk(module.tree.body, module)
    while add_functions(modules):
        pass
    actual = {}
    for module in modules:
        source = module.path.read_text().splitlines()
        lines = sorted({**module.partly, **module.lines}.items())
        if lines:
            actual[module.path] = [Statement(first, last, source[first - 1].strip()) for first, last in lines]
    return actual


def value_on_cpu(node: ast.expr, values: dict[str, bool]) -> bool | None:
    """Return the value of a condition on every CPU; None if it depends on more."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        value = value_on_cpu(node.operand, values)
        return None if value is None else not value
    if isinstance(node, ast.BoolOp):
        parts = [value_on_cpu(part, values) for part in node.values]
        decisive = isinstance(node.op, ast.Or)
        if decisive in parts:
            return decisive
        return None if None in parts else not decisive
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _comparison(node)
    if isinstance(node, ast.Call):
        text = ast.unparse(node)
        return False if "cuda" in text and ("is_available" in text or "is_autocast_enabled" in text) else None
    name = _name(node)
    if name is not None and (name == "is_cuda" or GPU_NAME.match(name)):
        return False
    return values.get(name) if name is not None else None


def _comparison(node: ast.Compare) -> bool | None:
    left, right, operator = node.left, node.comparators[0], node.ops[0]
    constants = {side.value for side in (left, right) if isinstance(side, ast.Constant)}
    if None in constants and (_name(left) or "").endswith("scaler"):
        return isinstance(operator, ast.Is)
    is_equal = {ast.Eq: True, ast.NotEq: False}.get(type(operator))
    if is_equal is None or not constants & {"cpu", "cuda"}:
        return None
    return is_equal if "cpu" in constants else not is_equal


def _name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else None


def known_names(tree: ast.Module) -> dict[str, bool]:
    """Return names and attributes whose assignments in a file are all conditions with one value on a CPU."""
    actual: dict[str, set[bool | None]] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                name = _name(target)
                if name is not None:
                    actual.setdefault(name, set()).add(value_on_cpu(node.value, {}))
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            actual.setdefault(node.arg, set()).add(None)
    return {name: values.pop() for name, values in actual.items() if len(values) == 1 and None not in values}  # type: ignore[misc]


def walk(statements: list[ast.stmt], module: Module) -> None:
    """Add the lines of a block that only GPUs reach."""
    for position, statement in enumerate(statements):
        value = value_on_cpu(statement.test, module.values) if isinstance(statement, ast.If) else None
        if isinstance(statement, ast.If) and value is not None:
            here, gpus = (statement.body, statement.orelse) if value else (statement.orelse, statement.body)
            add_all(gpus, module)
            walk(here, module)
            if here and isinstance(here[-1], LEAVING):
                add_all(statements[position + 1 :], module)
                return
            continue
        if any(value_on_cpu(node.test, module.values) is not None for node in _conditional_expressions(statement)):
            module.partly[statement.lineno] = _last_line(statement)
        for block in _blocks(statement):
            walk(block, module)


def add_all(statements: Iterable[ast.stmt], module: Module) -> None:
    for statement in statements:
        is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        is_declaration = isinstance(statement, ast.AnnAssign) and statement.value is None
        is_endless = isinstance(statement, ast.While) and isinstance(statement.test, ast.Constant)
        if not (is_docstring or is_declaration or is_endless or isinstance(statement, WITHOUT_CODE)):
            module.lines[statement.lineno] = _last_line(statement)
        for block in _blocks(statement):
            add_all(block, module)


def _last_line(statement: ast.stmt) -> int:
    """Return the last line of a statement before its first block."""
    starts = [block[0].lineno - 1 for block in _blocks(statement) if block]
    return max(statement.lineno, min([statement.end_lineno or statement.lineno, *starts]))


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in ("body", "orelse", "finalbody"):
        yield getattr(statement, name, [])
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield part.body


def _conditional_expressions(statement: ast.stmt) -> Iterator[ast.IfExp]:
    """Return the expressions of a statement itself, without nested statements."""
    nodes: list[ast.AST] = [statement]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.IfExp):
            yield node
        children = ast.iter_child_nodes(node)
        nodes += [child for child in children if not isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case))]


def add_functions(modules: list[Module]) -> bool:
    """Add functions that only GPU lines use. Returns whether there were any."""
    functions = _functions_by_name(modules)
    uses: dict[str, list[bool]] = {}
    for module in modules:
        for statement, node in _names_used(module.tree):
            name = node.id if isinstance(node, ast.Name) else node.attr
            uses.setdefault(name, []).append(statement.lineno in module.lines)
    is_new = False
    for name, (module, function) in functions.items():
        before = len(module.lines)
        if all(uses.get(name, [False])):
            add_all(function.body, module)
            is_new |= len(module.lines) > before
    return is_new


def _functions_by_name(modules: list[Module]) -> dict[str, tuple[Module, ast.FunctionDef]]:
    """Return the functions and methods with a unique name."""
    actual: dict[str, list[tuple[Module, ast.FunctionDef]]] = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef):
                actual.setdefault(node.name, []).append((module, node))
    return {name: places[0] for name, places in actual.items() if len(places) == 1}


def _names_used(tree: ast.Module) -> Iterator[tuple[ast.stmt, ast.Name | ast.Attribute]]:
    """Return the names and attributes that are read, with their statements."""
    pairs: list[tuple[ast.stmt | None, ast.AST]] = [(None, tree)]
    while pairs:
        statement, node = pairs.pop()
        if isinstance(node, ast.stmt):
            statement = node
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load) and statement is not None:
            yield statement, node
        pairs += [(statement, child) for child in ast.iter_child_nodes(node)]
