"""Comparison of a run's config and texts with those that its checkpoints and models were made from.

Only keys that a stage's result depends on are compared, so a run may resume on other hardware or with other tracking.
Trade-off: a new key must be assigned to a stage here, or its changes go unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

from ulmfit_dist.config.loading import to_dict
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.pseudo_labels import digest_of_pseudo_labels

FOLD_KEYS = ("data.folds", "data.fold")
"""Keys that select the documents of a fold."""
LM_KEYS = ("seed", "tokenizer", "model", "lm", "data.valid_pct", "data.on_duplicates", *FOLD_KEYS)
"""Keys that the language model depends on, besides the texts."""
IGNORED_KEYS = ("classifier.metrics", "classifier.baseline", "classifier.baseline_features", "classifier.pseudo_labels")
"""Keys within these sections that are not compared: what is reported, and a path to content that is compared instead."""


def differences(
    stage: str,
    config: Config,
    old_config: Mapping[str, Any],
    fingerprint: str,
    old_fingerprint: Any,
    old_pseudo_labels: str | None = None,
) -> list[str]:
    """Return the changes that a stage depends on, such as `lm.wd (now 0.1, then 0.2)`.

    A key that the old config does not have counts as its default.

    Args:
        old_config: the earlier config, as plain dictionaries and lists.
        fingerprint, old_fingerprint: of the token stores.
        old_pseudo_labels: digest of the pseudo-labels that the stage was trained on; None: none.
    """
    new, defaults = to_dict(config), to_dict(Config())
    keys = KEYS[stage](config)
    changed = [name for key in keys for name in _differing(key, _at(new, key), _at(old_config, key), _at(defaults, key))]
    if "classifier" in keys and digest_of_pseudo_labels(config) != old_pseudo_labels:
        changed.append("classifier.pseudo_labels")
    return changed if fingerprint == old_fingerprint else [*changed, "data"]


def _lm_keys(config: Config) -> list[str]:
    """Return the keys of a language model; one with a validation share of its own is the same in all folds."""
    return [key for key in LM_KEYS if config.lm.valid_pct is None or key not in FOLD_KEYS]


def _classifier_keys(config: Config) -> list[str]:
    """Return the keys of a classifier; one on an external encoder does not depend on the run's language model."""
    return [key for key in (*LM_KEYS, "classifier") if config.classifier.encoder is None or key != "lm"]


KEYS = {"lm": _lm_keys, "classifier": _classifier_keys}
"""Keys that a stage's result depends on, by stage. All others may change between a run and its resumption."""


def _at(config: Any, key: str) -> Any:
    return reduce(lambda section, name: section.get(name) if isinstance(section, Mapping) else None, key.split("."), config)


def _differing(key: str, new: Any, old: Any, default: Any) -> list[str]:
    """Return the keys that differ; one that the old config does not have counts as its default."""
    if key in IGNORED_KEYS:
        return []
    if isinstance(new, dict) and isinstance(old, dict):
        parts = [(part, old.get(part, default.get(part)), default.get(part)) for part in new]
        return [name for part, value, usual in parts for name in _differing(f"{key}.{part}", new[part], value, usual)]
    if _are_sections(new) and _are_sections(old) and len(new) == len(old):
        pairs = enumerate(zip(new, old, strict=True))
        return [name for i, (one, other) in pairs for name in _differing(f"{key}[{i}]", one, other, {})]
    return [] if new == old else [f"{key} (now {new}, then {old})"]


def _are_sections(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)
