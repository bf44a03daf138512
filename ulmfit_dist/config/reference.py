"""Generator of docs/configuration.md: the page is a function of `schema.py`, so the two cannot disagree.

    python -m ulmfit_dist.config.reference > docs/configuration.md

The trade-off: the page is regenerated after each change of a key; a test compares the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ulmfit_dist.config.fields import is_optional, members, rule_of, type_hints
from ulmfit_dist.config.loading import describe
from ulmfit_dist.config.schema import Config, Phase

TYPES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    list[str]: "list of texts",
    list[Any]: "list",
    dict[str, str]: "texts by name",
    dict[str, Any]: "values by name",
}
"""Names of types, for fields without a rule or choices."""

HEAD = """\
# Configuration

All keys of `ulmfit_dist/config/schema.py`, which this page is generated from.

A config is composed of layers, each over the one before: the defaults below, the recipe's bases, the recipe, and the
overrides on the command line. A recipe is a YAML file with the keys that differ from their defaults. `base: imdb.yaml` at
its top inherits the keys of another recipe, whose path is relative to the recipe's folder; that one may have a base, too.
CONFIG and `base` may also be the name of a recipe of the package, such as `imdb`; `ulmfit-dist config --list` prints them.
An override is `key=value`, such as `lm.global_batch_size=32`. A list or map given whole, such as
`'data.splits={train: a}'`, replaces the one before; `data.splits.valid=b` sets one entry of a map.

`ulmfit-dist config CONFIG` prints all keys with the values of a recipe, its bases included. `config.yaml` in a run directory
has all keys, too, and no `base`. An unknown key or an invalid value ends the command before anything starts."""


def page() -> str:
    """Return the page in Markdown: a table per section with key, valid values, default and meaning."""
    config = Config()
    parts = [HEAD, *_table("The run", config, "")]
    for item in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, item.name)):
            parts += _section(item.name, getattr(config, item.name))
    return "\n\n".join([*parts, *_table("A phase", Phase(), "")]) + "\n"


def _section(name: str, section: Any) -> Iterator[str]:
    """Yield the table of a section, then those of the sections in it."""
    yield from _table(name, section, f"{name}.")
    for item in dataclasses.fields(section):
        if dataclasses.is_dataclass(getattr(section, item.name)):
            yield from _section(f"{name}.{item.name}", getattr(section, item.name))


def _table(title: str, section: Any, prefix: str) -> Iterator[str]:
    fields = {item.name: item for item in dataclasses.fields(section)}
    yield f"## {title}"
    yield " ".join((section.__doc__ or "").split())
    rows = [("key", "values", "default", "meaning"), ("---",) * 4]
    for key, default, meaning in describe(section):
        if key in fields:  # the sections of Config have their own tables
            values = _values(fields[key], type_hints(type(section))[key])
            rows.append((f"`{prefix}{key}`", values, f"`{default}`" if default else "", meaning.replace("|", r"\|")))
    yield "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _values(item: dataclasses.Field[Any], hint: Any) -> str:
    """Return the valid values of a field: those of its choices or its rule, else its type."""
    null = ["`null`"] if is_optional(hint) else []
    rule = rule_of(item)
    if rule is not None and rule.choices:
        return ", ".join([f"`{choice}`" for choice in rule.choices] + null)
    if item.name == "phases":
        return "list of [phases](#a-phase)" + (", at least one" if rule is not None else "")
    if rule is None:
        return " or ".join([TYPES[member] for member in members(hint) if member in TYPES] + null)
    return ", or ".join([rule.expected.removeprefix("a ").replace("|", r"\|"), *null])


if __name__ == "__main__":
    print(page(), end="")
