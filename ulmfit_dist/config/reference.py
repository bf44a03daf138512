"""docs/configuration.md, made from `schema.py`, so that the page cannot say anything else:

python -m ulmfit_dist.config.reference > docs/configuration.md
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from ulmfit_dist.config.loading import describe
from ulmfit_dist.config.schema import Config, Phase

TYPES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "None": "null",
    "list[str]": "list of texts",
    "list[int]": "list of whole numbers",
    "list[float]": "list of numbers",
    "dict[str, str]": "texts by name",
    "dict[str, Any]": "values by name",
    "list[Any]": "list",
    "list[Phase]": "list of [phases](#a-phase)",
    "Any": "number, or two in a list",
}
"""What the types of keys are called, by their annotations."""

HEAD = """\
# Configuration

Every key, as `ulmfit_dist/config/schema.py` has it: this page is made from there. A recipe is a YAML file with the keys that
differ from their defaults; a word on the command line, such as `lm.global_batch_size=32`, wins over the recipe. A list
or a map that is given whole, such as `'data.splits={train: a}'`, replaces the recipe's; `data.splits.valid=b` sets one key.
`ulmfit-dist config CONFIG` prints the same keys with the values of a recipe. An unknown key or a value out of range is
refused before anything starts."""


def page() -> str:
    """The page in Markdown: a table for each section, with key, type, default and meaning of its keys."""
    config = Config()
    parts = [HEAD, *_table("The run", config, "")]
    for item in dataclasses.fields(config):
        if dataclasses.is_dataclass(getattr(config, item.name)):
            parts += _table(item.name, getattr(config, item.name), f"{item.name}.")
    return "\n\n".join([*parts, *_table("A phase", Phase(), "")]) + "\n"


def _table(title: str, section: Config | Phase, prefix: str) -> Iterator[str]:
    types = {item.name: str(item.type) for item in dataclasses.fields(section)}
    yield f"## {title}"
    yield " ".join((section.__doc__ or "").split())
    rows = [("key", "type", "default", "meaning"), ("---",) * 4]
    for key, default, meaning in describe(section):
        if key in types:  # those of Config's sections have a table of their own
            rows.append(
                (f"`{prefix}{key}`", _type(types[key]), f"`{default}`" if default else "", meaning.replace("|", r"\|"))
            )
    yield "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _type(annotation: str) -> str:
    return " or ".join(TYPES.get(part, f"`{part}`") for part in annotation.split(" | "))


if __name__ == "__main__":
    print(page(), end="")
