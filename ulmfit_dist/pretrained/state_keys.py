"""Keys of the state_dicts of fastai 0.7, 1.x and 2.x, translated to those of this package, which are fastai 2's.

Only names and shapes are read here; the tensors may still be in their file. Sources: fastai 0.7.0 `lm_rnn.py`, fastai 1.0.61
and 2.8 `text/models/awd_lstm.py` and `qrnn.py`.

V: size of the vocabulary, E: width of the embedding, H: width of a layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from ulmfit_dist.pretrained.restricted_pickle import TensorRef

T = TypeVar("T")

ENCODER_PREFIXES = ("0.module.", "0.", "encoder.", "")
"""Prefixes of an encoder's keys: in a classifier, in a language model, and in a file of the encoder only."""
EMBEDDING = "0.encoder.weight"
_RENAMED = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^encoder_with_dropout\.embed\.weight$", "encoder_dp.emb.weight"),  # 0.7
        (r"^rnns\.(\d+)\.module\.weight_hh_l0_raw$", r"rnns.\1.weight_hh_l0_raw"),  # 0.7
        (r"^rnns\.(\d+)\.((?:weight_ih|bias_ih|bias_hh)_l0)$", r"rnns.\1.module.\2"),  # without weight dropout
        (r"^rnns\.(\d+)\.weight_hh_l0$", r"rnns.\1.weight_hh_l0_raw"),
        (r"^rnns\.(\d+)\.(?:layers\.0\.)?linear\.(?:module\.)?weight_raw$", r"rnns.\1.layers.0.linear.weight_raw"),
        (r"^rnns\.(\d+)\.(?:layers\.0\.)?linear\.(?:module\.)?bias$", r"rnns.\1.layers.0.linear.module.bias"),
        (r"^rnns\.(\d+)\.(?:layers\.0\.)?linear\.weight$", r"rnns.\1.layers.0.linear.weight_raw"),
    )
]
_DROPPED = re.compile(r"^rnns\.\d+\.(?:module\.weight_hh_l0|(?:layers\.0\.)?linear\.module\.weight)$")
"""Weights after dropout: another copy of the raw ones, which files contain besides them."""
_LSTM, _QRNN = "0.rnns.{}.weight_hh_l0_raw", "0.rnns.{}.layers.0.linear.weight_raw"
_GENERATIONS = (
    (re.compile(r"encoder_with_dropout\.embed\.weight$|rnns\.\d+\.module\.weight_hh_l0_raw$"), "fastai 0.7"),
    (re.compile(r"rnns\.\d+\.(?:weight_hh_l0_raw|layers\.0\.linear\.weight_raw)$"), "fastai 1 or 2"),
)


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder: keys of the model section, and V.

    Attributes:
        arch: None for AWD-LSTM, or qrnn.
    """

    vocab_size: int
    emb_sz: int
    n_hid: int
    n_layers: int
    arch: str | None = None


class NotALanguageModelError(Exception):
    """Tensors that are not those of fastai's AWD-LSTM or QRNN language models; the message gives the reason."""


def state_of(content: Any) -> dict[str, TensorRef]:
    """Return the tensors by key of a state_dict, which may be the `model` or `state_dict` of a checkpoint.

    Raises:
        NotALanguageModelError: there are no tensors.
    """
    for name in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    items = content.items() if isinstance(content, dict) else ()
    state = {key: value for key, value in items if isinstance(key, str) and isinstance(value, TensorRef)}
    if not state:
        raise NotALanguageModelError("it is not a state_dict: there are no tensors by name in it")
    while all(key.startswith("module.") for key in state):  # torch's DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def translate(state: Mapping[str, T]) -> dict[str, T]:
    """Return the values by the keys of this package's language model, or of its encoder (`0.`) only.

    Heads of classifiers and the copies of weights after dropout are left out.

    Raises:
        NotALanguageModelError: there is no embedding where fastai has it.
    """
    prefix = next((prefix for prefix in ENCODER_PREFIXES if f"{prefix}encoder.weight" in state), None)
    if prefix is None:
        raise NotALanguageModelError(f"no encoder.weight in it, but {_some_keys(state)}")
    has_raw = any("_raw" in key for key in state)
    translated = {}
    for key, value in state.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and re.match(r"encoder|rnns\.", name) and not (has_raw and _DROPPED.match(name)):
            translated[f"0.{_renamed(name)}"] = value
    decoder = {key: value for key, value in state.items() if key in ("1.decoder.weight", "1.decoder.bias")}
    return {**translated, **decoder}


def shape_of(shapes: Mapping[str, tuple[int, ...]]) -> EncoderShape:
    """Return the sizes of an encoder from the shapes of its tensors, by translated key.

    Raises:
        NotALanguageModelError: the tensors do not fit each other, or are those of another network.
    """
    embedding = shapes.get(EMBEDDING, ())
    if len(embedding) != 2:
        raise NotALanguageModelError("its embedding does not have the shape [V, E]")
    numbers = {int(key.split(".")[2]) for key in shapes if key.startswith("0.rnns.")}
    n_layers = len(numbers)
    if not numbers or numbers != set(range(n_layers)):
        raise NotALanguageModelError(f"no recurrent layers rnns.0, rnns.1, ... in it, but {_some_keys(shapes)}")
    emb_sz, first = embedding[1], shapes.get(_QRNN.format(0)) or shapes.get(_LSTM.format(0)) or (0,)
    arch, gates = ("qrnn", 3) if _QRNN.format(0) in shapes else (None, 4)
    n_hid = first[0] // gates
    shape = EncoderShape(embedding[0], emb_sz, n_hid, n_layers, arch)
    expected = _expected_shapes(shape)
    for key, wanted in expected.items():
        if shapes.get(key) != wanted:
            actual = "missing" if key not in shapes else f"of shape {shapes[key]}"
            raise NotALanguageModelError(f"{key.removeprefix('0.')} is {actual}, but fits the others with shape {wanted}")
    if unknown := [key for key in shapes if key.startswith("0.rnns.") and key not in expected]:
        raise NotALanguageModelError(f"{unknown[0].removeprefix('0.')} is not in fastai's AWD-LSTM or QRNN")
    return shape


def generation_of(state: Mapping[str, Any]) -> str:
    """Return the version of fastai that writes such keys, for messages."""
    return next((name for pattern, name in _GENERATIONS if any(map(pattern.search, state))), "another library")


def _expected_shapes(shape: EncoderShape) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the recurrent layers by key."""
    widths = [shape.emb_sz, *[shape.n_hid] * (shape.n_layers - 1), shape.emb_sz]
    expected: dict[str, tuple[int, ...]] = {}
    for layer, (n_in, n_out) in enumerate(pairwise(widths)):
        if shape.arch == "qrnn":
            window = 2 if layer == 0 else 1
            expected[_QRNN.format(layer)] = (3 * n_out, window * n_in)
            expected[f"0.rnns.{layer}.layers.0.linear.module.bias"] = (3 * n_out,)
            continue
        expected[_LSTM.format(layer)] = (4 * n_out, n_out)
        expected[f"0.rnns.{layer}.module.weight_ih_l0"] = (4 * n_out, n_in)
        expected |= {f"0.rnns.{layer}.module.bias_{part}_l0": (4 * n_out,) for part in ("ih", "hh")}
    return expected


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return name


def _some_keys(state: Mapping[str, Any]) -> str:
    keys = [str(key)[:60] for key in list(state)[:3]]
    return f"{', '.join(keys)}{', ...' if len(state) > 3 else ''}" or "nothing"
