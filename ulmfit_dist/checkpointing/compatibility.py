"""Whether what a run has done so far is of the config and the texts at hand."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from ulmfit_dist.config.loading import to_dict
from ulmfit_dist.config.schema import Config

FOLD_KEYS = ("data.folds", "data.fold")
LM_KEYS = ("seed", "tokenizer", "model", "lm", "data.valid_pct", "data.on_duplicates", *FOLD_KEYS)
DECISIVE_KEYS = {"lm": LM_KEYS, "classifier": (*LM_KEYS, "classifier")}
"""The keys that a stage's result depends on, beside the texts. All others may change between a run and its resumption."""
SEEN_ALONE = ("classifier.metrics", "classifier.baseline")
"""Keys among them that change what is seen, and not the model."""


def differences(stage: str, now: Config, then: Mapping[str, Any], fingerprint: str, then_fingerprint: Any) -> list[str]:
    """What has changed for a stage, as `lm.wd (now 0.1, then 0.2)`. A key that was not there then had its default.

    Args:
        then: the earlier config, as plain dictionaries and lists.
        fingerprint, then_fingerprint: of the token store, now and then.
    """
    new, defaults = to_dict(now), to_dict(Config())
    keys = _decisive_keys(stage, now)
    changed = [name for key in keys for name in _differing(key, _at(new, key), _at(then, key), _at(defaults, key))]
    return changed if fingerprint == then_fingerprint else [*changed, "data"]


def _decisive_keys(stage: str, config: Config) -> list[str]:
    """Those of a stage; a classifier on an encoder from elsewhere does not depend on how the run trains a language model."""
    is_on_other = stage == "classifier" and config.classifier.encoder is not None
    is_shared = stage == "lm" and config.lm.valid_pct is not None  # by all folds, as it is validated on no one's documents
    left_out = (*(["lm"] if is_on_other else []), *(FOLD_KEYS if is_shared else []))
    return [key for key in DECISIVE_KEYS[stage] if key not in left_out]


def _at(config: Any, key: str) -> Any:
    return reduce(lambda section, name: section.get(name) if isinstance(section, Mapping) else None, key.split("."), config)


def _differing(key: str, new: Any, old: Any, default: Any) -> list[str]:
    """Keys that differ; one that the earlier config does not know had its default, whatever the version."""
    if key in SEEN_ALONE:
        return []
    if isinstance(new, dict) and isinstance(old, dict):
        parts = [(part, old.get(part, default.get(part)), default.get(part)) for part in new]
        return [name for part, before, usual in parts for name in _differing(f"{key}.{part}", new[part], before, usual)]
    if _are_sections(new) and _are_sections(old) and len(new) == len(old):
        pairs = enumerate(zip(new, old, strict=True))
        return [name for i, (one, other) in pairs for name in _differing(f"{key}[{i}]", one, other, {})]
    return [] if new == old else [f"{key} (now {new}, then {old})"]


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
