"""Recipe as YAML: the keys that differ from their defaults, each with its reason as a comment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import yaml

from ulmfit_dist.config.schema import Config, Phase

COMMENT_COLUMN = 30
"""Column at which comments start, if values are short enough."""
ALWAYS = (
    "data.source",
    "data.path",
    "data.text_col",
    "data.label_col",
    "tokenizer.lang",
    "tokenizer.max_vocab",
    "model.emb_sz",
    "model.n_hid",
    "model.n_layers",
    "classifier.target",
    "lm.global_batch_size",
    "classifier.global_batch_size",
)
"""Keys that are written even if they have their defaults, because users change them first."""


def recipe_yaml(config: Config, reasons: Mapping[str, str], heading: Sequence[str], left_out: Sequence[str] = ()) -> str:
    """Return the recipe of a config.

    Args:
        reasons: comments by dotted key or section.
        heading: comment lines at the top.
        left_out: dotted keys or sections that are not written.
    """
    lines = [f"# {line}" for line in heading]
    lines += _keys(config, "", reasons, left_out)
    return "\n".join(lines) + "\n"


def _keys(node: Any, prefix: str, reasons: Mapping[str, str], left_out: Sequence[str]) -> Iterator[str]:
    default = type(node)()
    indent = "  " * prefix.count(".")
    for item in fields(node):
        key, value = f"{prefix}{item.name}", getattr(node, item.name)
        if key in left_out:
            continue
        if is_dataclass(value):
            inside = list(_keys(value, f"{key}.", reasons, left_out))
            if inside:
                yield _commented(f"{indent}{item.name}:", reasons.get(key, ""))
                yield from inside
        elif item.name == "phases" and value:
            yield _commented(f"{indent}{item.name}:", reasons.get(key, ""))
            yield from (f"{indent}  - {_phase(phase)}" for phase in value)
        elif key in ALWAYS or value != getattr(default, item.name):
            yield _commented(f"{indent}{item.name}: {inline_yaml(value)}", reasons.get(key, ""))


def inline_yaml(value: Any) -> str:
    """Return a value as YAML on one line, quoted if necessary."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1_000_000)
    return text.removesuffix("...\n").strip()


def _phase(phase: Phase) -> str:
    default = asdict(Phase())
    chosen = {key: value for key, value in asdict(phase).items() if key in ("epochs", "lr") or value != default[key]}
    return "{" + ", ".join(f"{key}: {_number(value)}" for key, value in chosen.items()) + "}"


def _number(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_number, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _commented(text: str, reason: str) -> str:
    reason = " ".join(reason.split())
    return f"{text:<{COMMENT_COLUMN - 1}} # {reason}" if reason else text
