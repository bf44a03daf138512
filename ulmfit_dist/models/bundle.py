"""Exported models: a folder that holds all that inference needs, and nothing that could run code.

model.safetensors     weights, keys as in fastai's state_dict, tied ones once
vocab.json            tokens by id
config.yaml           the run's config: sizes of the network, tokenizer
labels.json           class names by index, none for a regression; a classifier's only
sentencepiece.model   what makes its tokens, if that is SentencePiece
training.json         what it was trained on and how well it did
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
from ulmfit_dist.utils.files import read_bounded, write_bytes, write_json
from ulmfit_dist.utils.imports import check_trust

WEIGHTS = "model.safetensors"
LONGEST_TEXT = 1 << 20
"""Bytes of config.yaml or training.json that are read at most."""


@dataclass
class ModelBundle:
    """What an exported folder says, weights aside."""

    folder: Path
    config: Config
    vocab: list[str]
    labels: list[str] | None
    training: dict[str, Any]


def save_bundle(
    folder: Path, model: nn.Module, config: Config, store: TokenStore, labels: list[str] | None, training: dict[str, Any]
) -> None:
    """Write an export beside its place and rename it there, so that it is whole or not there.

    Args:
        store: what the model was trained on: vocabulary and tokenizer are its.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary, previous = (folder.with_name(f".{folder.name}.{os.getpid()}.{name}") for name in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(model, str(temporary / WEIGHTS))
        write_bytes(temporary / "config.yaml", to_yaml(config).encode())
        shutil.copymode(temporary / "config.yaml", temporary / WEIGHTS)  # safetensors lets nobody else read it
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
    """The export of a stage, given a run directory or the export itself; None where there is neither."""
    for folder in (run / stage, run):
        if (folder / WEIGHTS).is_file() and (stage == "lm") is not (folder / "labels.json").is_file():
            return folder
    return None


def read_bundle(folder: Path) -> ModelBundle:
    """Read all but the weights. Raises UserError where a file is missing or unreadable."""
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


def _read_config(path: Path) -> Config:
    """The config of an export: whoever wrote it, no larger than ours, and without the aliases that can make YAML grow."""
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
    """The network of an export with its weights, ready to infer.

    Args:
        trust: whether a class that its config names (model.arch) may be made.

    Raises:
        UserError: the weights do not fit the config; no trust.
    """
    config = exported.config
    if config.model.arch is not None:
        check_trust({"model.arch": [config.model.arch]}, exported.folder, trust)
    if exported.labels is None:
        model: nn.Module = build_language_model(len(exported.vocab), config.model, config.lm)
    else:
        outputs = num_outputs(config.classifier.target, exported.labels)
        model = build_classifier(len(exported.vocab), outputs, config.model, config.classifier)
    load_weights(model, exported.folder / WEIGHTS)
    return model.eval().to(device)


def load_encoder(encoder: Encoder, exported: ModelBundle, vocab: list[str], model: ModelConfig) -> None:
    """Give an encoder the weights of an exported language model.

    Args:
        encoder: as `model` says.

    Raises:
        UserError: the language model reads by another vocabulary, or is of another size.
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
    """Read a safetensors file into a network. Raises UserError for a damaged file or one that does not fit."""
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
    """The export of a stage, given a run directory or the export itself. Raises UserError where there is neither."""
    folder = find_model(run, stage)
    if folder is None:
        raise UserError(f"{run}: no {stage} model here: give a run directory that has one, or an exported model's folder")
    return folder
