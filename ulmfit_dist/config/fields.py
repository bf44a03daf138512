"""Valid values of one config key, declared at its field in `schema.py`.

A rule is a predicate and its wording, kept in the field's metadata: the check, the error message and docs/configuration.md
read the same one. Choices are rules on text, not `Literal`: OmegaConf would reject them layer by layer, without the nearest
choice. The trade-off: the type checker does not know them.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_RULE = "rule"


@dataclass(frozen=True)
class Rule:
    """Valid values of a field.

    Attributes:
        accepts: predicate on a value; an optional field's None is not passed to it.
        expected: wording of the valid values, which completes "give ...".
        choices: all valid values, if they are a fixed list.
    """

    accepts: Callable[[Any], bool]
    expected: str
    choices: tuple[str, ...] = ()


def checked(default: Any, accepts: Callable[[Any], bool], expected: str) -> Any:
    """Return a dataclass field with a rule; each instance gets its own copy of a default list."""
    metadata = {_RULE: Rule(accepts, expected)}
    if isinstance(default, list):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def choice(default: str | None, *others: str) -> Any:
    """Return a field for one of a fixed list of texts: the default, unless it is None, and the others."""
    choices = others if default is None else (default, *others)
    return field(default=default, metadata={_RULE: Rule(choices.__contains__, f"one of {', '.join(choices)}", choices)})


def count(default: int | None, at_least: int = 1) -> Any:
    """Return a field for a whole number of at least `at_least`."""
    return checked(default, lambda value: value >= at_least, f"a whole number of at least {at_least}")


def number(
    default: float | None,
    noun: str = "number",
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    example: float | None = None,
) -> Any:
    """Return a field for a finite number: `at_least` is inclusive, `above` and `below` are exclusive."""
    low, high = (above if at_least is None else at_least), (math.inf if below is None else below)
    assert low is not None

    def accepts(value: float) -> bool:
        return (value > low if at_least is None else value >= low) and value < high

    if at_least is None:
        bounds = f"above {low:g}" if below is None else f"between {low:g} and {high:g}"
    else:
        bounds = f"of at least {low:g}" if below is None else f"from {low:g} to below {high:g}"
    return checked(default, accepts, f"a {noun} {bounds}" + (f", such as {example:g}" if example is not None else ""))


def share(default: float | None, example: float = 0.1) -> Any:
    """Return a field for a share, strictly between 0 and 1."""
    return number(default, "share", above=0, below=1, example=example)


def is_positive(value: Any) -> bool:
    """Return whether a value of any type is a finite number above 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def rule_of(item: dataclasses.Field[Any]) -> Rule | None:
    """Return the rule of a field."""
    return item.metadata.get(_RULE)


def type_hints(cls: type) -> dict[str, Any]:
    """Return the resolved types of a dataclass's fields by name."""
    return typing.get_type_hints(cls)


def is_optional(hint: Any) -> bool:
    """Return whether a type admits None."""
    return type(None) in members(hint)


def members(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, or the type itself."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
