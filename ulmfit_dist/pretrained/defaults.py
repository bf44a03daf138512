"""Keys of the config that pretrained weights determine: sizes of the network, and their tokenizer.

They apply beneath the recipe: `model.pretrained: de` needs no other key, and a recipe that contradicts the weights fails.
Sizes come from the list of public models, the config of an exported model, or the shapes of tensors; no tensor is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ulmfit_dist.errors import UserError
from ulmfit_dist.pretrained.download import cached_model
from ulmfit_dist.pretrained.hub import model_path
from ulmfit_dist.pretrained.reader import describe_model
from ulmfit_dist.pretrained.registry import PublicModel, find_public_model
from ulmfit_dist.utils.files import read_bounded

OF_THE_WEIGHTS = "pretrained"
"""Value of `tokenizer.sp_model` that means the SentencePiece model of `model.pretrained`."""
_EXPORTED = {"model": ("emb_sz", "n_hid", "n_layers"), "tokenizer": ("type", "lang")}
_ARCHITECTURES = (None, "qrnn")
"""Values of `model.arch` that need no code of the user's: any other must be in the recipe."""
_LONGEST_CONFIG = 1 << 20


def pretrained_config(name: str, backwards: bool) -> dict[str, Any]:
    """Return dotted keys and values that the weights of `model.pretrained` determine; empty for a path without files.

    Args:
        name: a public model, one of the hub, an exported model or a run directory, or files of fastai's.
        backwards: direction, for public models and folders with both.

    Raises:
        UserError: there is no model of this direction, or its files are damaged.
    """
    public = find_public_model(name)
    if public is not None:
        return {**public.config, **_of_cached(public, backwards)}
    path = model_path(name).expanduser()
    for folder in (path / "lm", path):
        if (folder / "model.safetensors").is_file() and not (folder / "labels.json").is_file():
            return _of_exported(folder)
    if not path.exists() or (path / "classifier").is_dir() or (path / "model.safetensors").is_file():
        return {}  # refused where the weights are loaded
    return _of_files(path, backwards)


def _of_cached(public: PublicModel, backwards: bool) -> dict[str, Any]:
    """Return the sizes of a public model that has been downloaded: its publisher may not state them."""
    folder = cached_model(public, backwards)
    return {} if folder is None else _of_files(folder, backwards)


def _of_files(path: Path, backwards: bool) -> dict[str, Any]:
    """Return the sizes of a model in fastai's files, and its tokenizer if there is a SentencePiece model."""
    model = describe_model(path, backwards)
    shape = model.shape
    config: dict[str, Any] = {
        "model.arch": shape.arch,
        "model.emb_sz": shape.emb_sz,
        "model.n_layers": shape.n_layers,
    }
    if shape.n_layers > 1:  # a single layer has the width of the embedding
        config["model.n_hid"] = shape.n_hid
    if model.files.sp_model is not None:
        config |= {"tokenizer.type": "sentencepiece", "tokenizer.sp_model": OF_THE_WEIGHTS}
    return config


def _of_exported(folder: Path) -> dict[str, Any]:
    """Return sizes and tokenizer of a language model that was exported by this package."""
    try:
        content = yaml.safe_load(read_bounded(folder / "config.yaml", _LONGEST_CONFIG))
        config = {f"{section}.{key}": content[section][key] for section, keys in _EXPORTED.items() for key in keys}
        arch = content["model"]["arch"]
        if any(type(value) is not (int if key.startswith("model.") else str) for key, value in config.items()):
            raise TypeError("a value of another type")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / 'config.yaml'}: missing or damaged ({reason}): export the model again") from None
    if arch in _ARCHITECTURES:
        config["model.arch"] = arch
    if (folder / "sentencepiece.model").is_file():
        config["tokenizer.sp_model"] = OF_THE_WEIGHTS
    return config
