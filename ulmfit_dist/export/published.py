"""The config and the metadata of a model as they are published: what inference needs, nothing of this machine or its user.

Sections that describe the model are published except for some keys; of the others, only some keys are. All other keys have
their defaults. A path in what remains is an error, so a key that is added to the schema later cannot publish one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ulmfit_dist.config.loading import describe, to_dict
from ulmfit_dist.config.schema import Config, DataConfig, RuntimeConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.pretrained.hub import is_hub_model
from ulmfit_dist.pretrained.registry import is_public_name

DATA_KEYS = ("text_col", "label_col", "missing_label", "label_delim", "on_error", "encoding", "quoting")
"""Keys of the data section that are published: how to read tables with new texts."""
PRIVATE_KEYS = {
    "tokenizer": ("sp_model",),
    "model": (),
    "lm": ("callbacks",),
    "classifier": ("callbacks", "metrics", "pseudo_labels", "repeat_labelled"),
}
"""Keys by section that get their defaults, in sections that are published otherwise."""
TRAINING_KEYS = ("data_fingerprint", "world_size", "precision", "in_notebook", "metrics")
"""Keys of training.json that are published."""
PATH = re.compile(r"(~|[A-Za-z]:\\|\\\\|/.|\.\.?/)")
"""Beginning of a path of this machine."""


def published_config(config: Config, name: str) -> Config:
    """Return a config without paths, user names and settings of this machine. It is valid, and builds the same model.

    Args:
        name: name of the repository, in place of the run's.

    Raises:
        UserError: a key that the model needs contains a path.
    """
    default = Config()
    sections = {}
    for section, private in PRIVATE_KEYS.items():
        values = getattr(default, section)
        sections[section] = replace(getattr(config, section), **{key: getattr(values, key) for key in private})
    if _is_local(config.model.pretrained):
        sections["model"].pretrained = None
    encoder = config.classifier.encoder
    if _is_local(encoder) or (encoder == "pretrained" and sections["model"].pretrained is None):
        sections["classifier"].encoder = None
    data = DataConfig(source="frame", **{key: getattr(config.data, key) for key in DATA_KEYS})
    public = replace(default, name=name, seed=config.seed, data=data, **sections)
    public.runtime = RuntimeConfig(precision=config.runtime.precision)
    _check_paths(public)
    return public


def published_training(training: dict[str, Any]) -> dict[str, Any]:
    """Return the content of training.json without keys that name a run of this machine."""
    return {key: training[key] for key in TRAINING_KEYS if key in training}


def _is_local(weights: str | None) -> bool:
    """Return whether initial weights are a path, not a name that means the same on any machine."""
    return not (weights is None or is_hub_model(weights) or is_public_name(weights))


def _check_paths(config: Config) -> None:
    tree = to_dict(config)
    for section in PRIVATE_KEYS:
        for key, value in _texts(tree[section], section):
            if PATH.match(value):
                raise UserError(
                    f"{key}={value}: a path of this machine cannot be published: train the model with a value that is the "
                    f"same on any machine"
                )


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield dotted key and value of each text in a section."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _texts(item, f"{key}.{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, f"{key}[{number}]")
    elif isinstance(value, str):
        yield key, value


def public_keys() -> set[str]:
    """Return the dotted keys that can be published with other values than their defaults."""
    keys = {"name", "seed", "runtime.precision", *(f"data.{key}" for key in DATA_KEYS)}
    for key, _, _ in describe(Config()):
        section, _, name = key.partition(".")
        if section in PRIVATE_KEYS and name not in PRIVATE_KEYS[section]:
            keys.add(key)
    return keys


def published_sentencepiece(content: bytes) -> bytes:
    """Return a SentencePiece model without the paths of the files that it was trained on.

    Raises:
        UserError: not a SentencePiece model, or SentencePiece is not installed.
    """
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise UserError(
            "the model's tokenizer needs the package sentencepiece: pip install 'ulmfit-dist[sentencepiece]'"
        ) from None
    try:
        model = sentencepiece_model_pb2.ModelProto.FromString(content)
    except Exception as error:
        raise UserError(f"sentencepiece.model: damaged ({error}): export the model again") from None
    of_trainer, of_normalizer = ("input", "model_prefix", "seed_sentencepieces_file"), ("normalization_rule_tsv",)
    fields_of = ((model.trainer_spec, of_trainer), (model.normalizer_spec, of_normalizer))
    paths = [(section, name) for section, names in fields_of for name in names if getattr(section, name)]
    for section, name in paths:
        section.ClearField(name)
    return bytes(model.SerializeToString()) if paths else content
