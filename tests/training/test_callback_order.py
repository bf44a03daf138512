"""Orders of callbacks: unique, or a documented alias, and used by every callback of the package."""

import ast
from pathlib import Path

from conftest import ROOT

from ulmfit_dist.training.callbacks.order import CallbackOrder

TIES = {("TRACKING", "EPOCH_TABLE"), ("CHECKPOINT", "RESUME_EPOCH")}
"""Members of equal order: the first pair never meets, in the second one the relative order does not matter."""


def assigned_orders(path: Path) -> dict[str, ast.expr]:
    """Return the value of `order` by class of a module."""
    orders = {}
    for cls in (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ClassDef)):
        for node in (node for node in cls.body if isinstance(node, ast.Assign)):
            (target,) = node.targets
            names, values = (
                (target.elts, node.value.elts)
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple)
                else ([target], [node.value])
            )
            for name, value in zip(names, values, strict=True):
                if isinstance(name, ast.Name) and name.id == "order":
                    orders[cls.name] = value
    return orders


def test_orders_are_unique_except_for_intended_ties():
    aliases = {(member.name, name) for name, member in CallbackOrder.__members__.items() if name != member.name}
    assert aliases == TIES
    assert list(CallbackOrder) == sorted(CallbackOrder)


def test_every_callback_of_the_package_takes_its_order_from_the_enum():
    orders = {name: value for path in (ROOT / "ulmfit_dist").rglob("*.py") for name, value in assigned_orders(path).items()}
    used = {value.attr for value in orders.values() if isinstance(value, ast.Attribute)}
    assert used == CallbackOrder.__members__.keys()
    assert len(used) == len(orders)
