"""Factory of encoders: AWD-LSTM, a built-in one by its name (`qrnn`), or the user-defined class that `model.arch` names."""

from __future__ import annotations

from typing import Any

from ulmfit_dist.config.schema import ModelConfig, UnlabelledConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.awd_lstm import AWDLSTM
from ulmfit_dist.models.encoder import Encoder
from ulmfit_dist.models.qrnn import NAME, QRNN
from ulmfit_dist.utils.imports import import_path, on_one_line

KEY = "model.arch"
BUILT_IN: dict[str, type[Encoder]] = {NAME: QRNN}
"""Encoders of this package by their value of `model.arch`; they need no trust."""


def user_class(model: ModelConfig) -> str | None:
    """Return the import path of a user-defined encoder; None for an encoder of this package."""
    return None if model.arch in BUILT_IN else model.arch


def make_encoder(vocab_size: int, model: ModelConfig, dropouts: dict[str, float]) -> Encoder:
    """Return an encoder with initial weights.

    Args:
        vocab_size: size of the vocabulary, V.
        model: model section of the config; a user-defined class also gets it, with its `arch_kwargs` as keyword arguments.
        dropouts: `embed_p`, `input_p`, `hidden_p` and `weight_p`: fastai's for the stage, times its `drop_mult`.

    Raises:
        UserError: there is no such class, it raises an error, or its encoder does not have the required attributes.
    """
    if model.arch is None:
        return AWDLSTM(vocab_size, model, dropouts)
    encoder_class: Any = _encoder_class(model.arch)
    try:
        encoder: Encoder = encoder_class(vocab_size, model, dropouts, **model.arch_kwargs)
        _check(encoder, vocab_size, model)
    except Exception as error:
        reason = f"{type(error).__name__}: {on_one_line(error)}"
        raise UserError(
            f"{KEY}: {model.arch} cannot be instantiated ({reason}): fix the class, or model.arch_kwargs"
        ) from None
    return encoder


def check_perturbation(model: ModelConfig, settings: UnlabelledConfig) -> None:
    """Raise UserError if a loss needs perturbed embeddings, and the encoder adds no perturbation to its own."""
    if not settings.is_perturbed or model.arch is None or _encoder_class(model.arch).can_be_perturbed:
        return
    raise UserError(
        f"classifier.unlabelled: model.arch={model.arch} does not perturb its embeddings: call self.perturbed in its read "
        f"and set can_be_perturbed, or leave out adversarial_weight and virtual_adversarial_weight"
    )


def _encoder_class(arch: str) -> type[Encoder]:
    """Return the class of a value of `model.arch`. Raises UserError if there is none, or if it is not an encoder."""
    what = f"module.Class, or as {' or '.join(BUILT_IN)}"
    encoder_class: Any = BUILT_IN.get(arch) or import_path(arch, KEY, what)
    if not (isinstance(encoder_class, type) and issubclass(encoder_class, Encoder)):
        raise UserError(f"{KEY}: {arch} is not a subclass of ulmfit_dist.models.encoder.Encoder: derive it from that")
    return encoder_class


def _check(encoder: Encoder, vocab_size: int, model: ModelConfig) -> None:
    """Raise ValueError if training would fail later, or would not train all layers."""
    shape, groups = tuple(encoder.encoder.weight.shape), len(encoder.layer_groups())
    if shape != (vocab_size, model.emb_sz):
        raise ValueError(
            f"the weight of .encoder has shape {shape}, expected vocabulary and model.emb_sz, {vocab_size, model.emb_sz}"
        )
    if groups != model.n_layers:
        raise ValueError(f"layer_groups() returns {groups} groups, but model.n_layers is {model.n_layers}")
    if any(len(parts) > 2 for parts in encoder.zero_state(1)):
        raise ValueError("zero_state() returns more than two tensors for a layer")
