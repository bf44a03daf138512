"""docs/troubleshooting.md knows the messages of the program, and no other ones."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT

PAGE = ROOT / "docs/troubleshooting.md"
ERRORS = ("UserError", "BadRow", "BadCell")
OPEN = "..."
"""Stands for what is filled in, in the messages of the page and of the source."""


def test_each_message_of_the_page_is_one_of_the_program():
    known = [message for path in modules() for message in messages(path)]
    documented = documented_messages()
    assert len(documented) > 60
    assert [output for output in documented if not any(covers(output, message) for message in known)] == []


def test_each_module_that_refuses_something_is_on_the_page():
    missing = [
        str(path.relative_to(ROOT))
        for path in modules()
        if (known := messages(path))
        and not any(covers(output, message) for output in documented_messages() for message in known)
    ]
    assert missing == [], "add their messages to docs/troubleshooting.md"


def modules() -> list[Path]:
    return sorted((ROOT / "ulmfit_dist").rglob("*.py"))


def messages(path: Path) -> list[str]:
    """Return the messages of a module's errors, with `...` for values."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    output = ["".join(parts(call.args[0])) for call in calls if call.func.id in ERRORS and call.args]
    return [message for message in output if re.search(r"\w", message)]


def parts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from parts(value)
    else:
        yield OPEN


def documented_messages() -> list[str]:
    """The messages of the page: code in the first column of its tables."""
    rows = (line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `"))
    return [code for row in rows for code in re.findall(r"`([^`]+)`", row)]


def covers(documented: str, message: str) -> bool:
    """Return True if the fixed words of a documented message occur in one of the program, in their order."""
    position = 0
    for piece in documented.split(OPEN):
        position = message.find(piece.strip(), position)
        if position < 0:
            return False
        position += len(piece.strip())
    return True
