"""Exported models: a folder with everything that inference needs. It holds data only, so loading it cannot run code.

model.safetensors     weights by the keys of fastai's state_dict; tied weights once
vocab.json            tokens by id
config.yaml           config of the run: network sizes, tokenizer
labels.json           class names by index, empty for a regression; only of a classifier
sentencepiece.model   SentencePiece model, if the tokenizer uses one
training.json         data fingerprint and metrics of the training
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import yaml
from torch import nn

from ulmfit_dist.config.loading import load_config, to_yaml
from ulmfit_dist.config.schema import Config, ModelConfig
from ulmfit_dist.data.targets import num_outputs
from ulmfit_dist.data.token_store import MODEL_FILE, TokenStore
from ulmfit_dist.data.vocab import load_vocab
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.encoder import Encoder
from ulmfit_dist.models.networks import build_classifier, build_language_model, encoder_of
from ulmfit_dist.models.registry import user_class
from ulmfit_dist.pretrained.bundle_files import ENSEMBLE, LONGEST_TEXT, MAX_SIZES
from ulmfit_dist.pretrained.bundle_files import WEIGHTS as WEIGHTS
from ulmfit_dist.pretrained.hub import model_path
from ulmfit_dist.utils.files import read_bounded, write_bytes, write_json
from ulmfit_dist.utils.imports import check_trust


@dataclass
class ModelBundle:
    """The content of an exported folder, except for the weights."""

    folder: Path
    config: Config
    vocab: list[str]
    labels: list[str] | None
    training: dict[str, Any]


def save_bundle(
    folder: Path, model: nn.Module, config: Config, store: TokenStore, labels: list[str] | None, training: dict[str, Any]
) -> None:
    """Export a model atomically: write a temporary folder beside `folder` and rename it.

    Args:
        store: the token store that the model was trained on, for vocabulary and tokenizer.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary, previous = (folder.with_name(f".{folder.name}.{os.getpid()}.{name}") for name in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(model, str(temporary / WEIGHTS))
        write_bytes(temporary / "config.yaml", to_yaml(config).encode())
        shutil.copymode(temporary / "config.yaml", temporary / WEIGHTS)  # safetensors makes it readable for its owner only
        write_json(temporary / "vocab.json", store.vocab)
        write_json(temporary / "training.json", training)
        if (store.path / MODEL_FILE).exists():
            shutil.copyfile(store.path / MODEL_FILE, temporary / MODEL_FILE)
        if labels is not None:
            write_json(temporary / "labels.json", labels)
        if folder.exists():
            folder.replace(previous)
        temporary.replace(folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written ({error})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)


def find_model(run: Path, stage: str) -> Path | None:
    """Return the export of a stage, given a run directory, the export itself or `hf:USER/NAME`; None if there is none.

    Raises:
        UserError: the run directory is that of an ensemble, which has no model of its own.
    """
    run = model_path(run)
    for folder in (run / stage, run):
        if (folder / WEIGHTS).is_file() and (stage == "lm") is not (folder / "labels.json").is_file():
            return folder
    if (run / ENSEMBLE).is_file():
        from ulmfit_dist.models.ensemble_file import refuse_ensemble  # imports this module

        refuse_ensemble(run)
    return None


def read_bundle(folder: Path) -> ModelBundle:
    """Read everything except the weights. Raises UserError if a file is missing or unreadable."""
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no exported model here (no {WEIGHTS})")
    is_classifier = (folder / "labels.json").is_file()
    vocab = load_vocab(folder / "vocab.json")
    if not vocab:
        raise UserError(f"{folder / 'vocab.json'}: no tokens in it: export the model again")
    return ModelBundle(
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        vocab=vocab,
        labels=load_vocab(folder / "labels.json") if is_classifier else None,
        training=_read_training(folder / "training.json"),
    )


def bundle_digest(folder: Path) -> str:
    """Return the xxh3 of an exported model's files, hexadecimal: equal for equal weights, vocabulary, labels and config."""
    from ulmfit_dist.data.sources.base import digest
    from ulmfit_dist.data.sources.content_cache import hash_file

    paths = sorted(folder / name for name in MAX_SIZES if name != "training.json" and (folder / name).is_file())
    return digest([[path.name, hash_file(path)] for path in paths])


def _read_config(path: Path) -> Config:
    """Return the config of an export: of limited size, and without YAML aliases, which can expand to any size."""
    try:
        content = read_bounded(path, LONGEST_TEXT)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content)):
            raise UserError(f"{path}: not written by this program (it has YAML aliases): export the model again")
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: missing or damaged ({' '.join(str(error).split())}): export the model again") from None
    return load_config(path, allow_base=False)


def _read_training(path: Path) -> dict[str, Any]:
    try:
        training = json.loads(read_bounded(path, LONGEST_TEXT))
        return {"data_fingerprint": training["data_fingerprint"], **training}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: missing or damaged ({type(error).__name__}: {error}): export the model again") from None


def load_model(exported: ModelBundle, device: torch.device | str = "cpu", trust: bool = False) -> nn.Module:
    """Return the network of an export with its weights, in evaluation mode.

    Args:
        trust: instantiate a user-defined class that the config names (model.arch).

    Raises:
        UserError: the weights do not fit the config, or model.arch is a user-defined class and not trusted.
    """
    config = exported.config
    if (arch := user_class(config.model)) is not None:
        check_trust({"model.arch": [arch]}, exported.folder, trust)
    if exported.labels is None:
        model: nn.Module = build_language_model(len(exported.vocab), config.model, config.lm)
    else:
        outputs = num_outputs(config.classifier.target, exported.labels)
        model = build_classifier(len(exported.vocab), outputs, config.model, config.classifier)
    load_weights(model, exported.folder / WEIGHTS)
    return model.eval().to(device)


def load_encoder(encoder: Encoder, exported: ModelBundle, vocab: list[str], model: ModelConfig) -> None:
    """Load the weights of an exported language model into an encoder.

    Args:
        encoder: an encoder that was built from `model`.
        vocab: tokens by id of the texts.

    Raises:
        UserError: the language model has another vocabulary or another size.
    """
    if exported.vocab != vocab:
        raise UserError(
            f"{exported.folder}: its vocabulary ({len(exported.vocab):,} tokens) is not that of the texts "
            f"({len(vocab):,} tokens), so its encoder cannot read them: train the language model on these texts (--fresh)"
        )
    source = load_model(exported, trust=exported.config.model.arch == model.arch)
    try:
        encoder.load_state_dict(encoder_of(source).state_dict())
    except RuntimeError as error:
        raise UserError(f"{exported.folder}: its encoder does not fit the model section: {_first_problem(error)}") from None


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a network. Raises UserError if the file is damaged or does not fit the network."""
    try:
        safetensors.torch.load_model(model, str(path))
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged or unreadable ({error})") from None
    except RuntimeError as error:
        raise UserError(f"{path}: does not fit the config beside it: {_first_problem(error)}") from None


def _first_problem(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 else lines[0]


def model_folder(run: Path, stage: str) -> Path:
    """Return the export of a stage, given a run directory or the export itself. Raises UserError if there is neither."""
    folder = find_model(run, stage)
    if folder is None:
        raise UserError(f"{run}: no {stage} model here: give a run directory that has one, or an exported model's folder")
    return folder
