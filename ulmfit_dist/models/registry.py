"""The encoder that a config asks for: AWD-LSTM, or a class of the user's (`model.arch`)."""

from __future__ import annotations

from typing import Any

from ulmfit_dist.config.schema import ModelConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.awd_lstm import AWDLSTM
from ulmfit_dist.models.encoder import Encoder
from ulmfit_dist.utils.imports import import_path, on_one_line

KEY = "model.arch"


def make_encoder(vocab_size: int, model: ModelConfig, dropouts: dict[str, float]) -> Encoder:
    """An encoder with fresh weights.

    Args:
        vocab_size: V.
        model: the config's section; an own class gets it, too, and its `arch_kwargs` by name.
        dropouts: `embed_p`, `input_p`, `hidden_p` and `weight_p`: fastai's for the stage, times its `drop_mult`.

    Raises:
        UserError: there is no such class, it cannot be made, or it is not what language model and classifier are built on.
    """
    if model.arch is None:
        return AWDLSTM(vocab_size, model, dropouts)
    kind: Any = import_path(model.arch, KEY, "module.Class")
    if not (isinstance(kind, type) and issubclass(kind, Encoder)):
        raise UserError(f"{KEY}: {model.arch} is no class of ulmfit_dist.models.encoder.Encoder: derive it from that")
    try:
        encoder: Encoder = kind(vocab_size, model, dropouts, **model.arch_kwargs)  # type: ignore[call-arg]
        _check(encoder, vocab_size, model)
    except Exception as error:
        what = f"{type(error).__name__}: {on_one_line(error)}"
        raise UserError(f"{KEY}: {model.arch} cannot be made ({what}): mend the class, or model.arch_kwargs") from None
    return encoder


def _check(encoder: Encoder, vocab_size: int, model: ModelConfig) -> None:
    """Raise ValueError for what would fail later, or train less than was asked for."""
    shape, groups = tuple(encoder.encoder.weight.shape), len(encoder.layer_groups())
    if shape != (vocab_size, model.emb_sz):
        raise ValueError(
            f"the weight of .encoder is {shape}, not of vocabulary and model.emb_sz, {vocab_size, model.emb_sz}"
        )
    if groups != model.n_layers:
        raise ValueError(f"layer_groups() gives {groups}, model.n_layers is {model.n_layers}")
    if any(len(parts) > 2 for parts in encoder.zero_state(1)):
        raise ValueError("zero_state() gives more than two tensors for a layer")
