"""Weights of a language model trained on general text, fitted to the vocabulary at hand.

Files are fastai's: a `.pth` state and a `.pkl` list of its tokens. Both are pickles, and both are read without running
what they say: tensors by torch's `weights_only`, the list by an unpickler that knows no classes.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from fastai.text.learner import clean_raw_keys, match_embeds
from torch import nn

from ulmfit_dist.config import ModelConfig
from ulmfit_dist.errors import UserError

WIKITEXT = {"wt103_fwd": "WT103_FWD", "wt103_bwd": "WT103_BWD"}


class _ListUnpickler(pickle.Unpickler):
    """Reads lists, strings and numbers, and refuses to import anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_pretrained(model: nn.Module, name: str, vocab: list[str], config: ModelConfig) -> int:
    """Give a language model pretrained weights; words that they lack get the mean embedding, as in fastai.

    Args:
        model: made by `build_language_model` for `vocab`.
        name: wt103_fwd, wt103_bwd (fetched by fastai's own downloader, and kept) or a folder with a .pth and a .pkl.
        vocab: tokens by id of the model.

    Returns:
        How many tokens of the vocabulary the weights know.

    Raises:
        UserError: no such files and no network, files that are not what they should be, weights of another size.
    """
    weights_file, tokens_file = fetch_pretrained(name)
    weights = _read_weights(weights_file)
    tokens = _read_tokens(tokens_file)
    _check_size(weights, tokens, weights_file, config)
    weights = clean_raw_keys(match_embeds(weights, tokens, vocab))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"{weights_file}: not an AWD-LSTM language model: {' '.join(str(error).split())[:300]}") from None
    return len(set(tokens) & set(vocab))


def fetch_pretrained(name: str) -> tuple[Path, Path]:
    """The files (.pth, .pkl) of pretrained weights, downloaded if need be: on one rank of a node before the others.

    Raises:
        UserError: no such files, or no network to fetch them.
    """
    folder = _download(name) if name in WIKITEXT else Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"model.pretrained={name}: neither {' nor '.join(WIKITEXT)} nor a folder")
    found = [next(iter(sorted(folder.glob(f"*.{ending}"))), None) for ending in ("pth", "pkl")]
    if found[0] is None or found[1] is None:
        raise UserError(f"{folder}: expected a .pth file with the weights and a .pkl file with the tokens")
    return found[0], found[1]


def _download(name: str) -> Path:
    from fastai.data.external import URLs, fastai_cfg, untar_data

    url = getattr(URLs, WIKITEXT[name])
    try:
        return Path(untar_data(url, c_key="model"))
    except Exception as error:
        place = fastai_cfg().path("model") / Path(url).stem
        raise UserError(
            f"model.pretrained={name}: {url} cannot be fetched ({type(error).__name__}): fetch it on a machine with a "
            f"network and unpack it to {place}, or set model.pretrained to a folder with its .pth and .pkl, or to null"
        ) from None


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: refused, it holds more than tensors or is damaged ({type(error).__name__})") from None
    state = state.get("model", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or "0.encoder.weight" not in state:
        raise UserError(f"{path}: not the state of a fastai language model (no 0.encoder.weight)")
    return dict(state)


def _read_tokens(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            tokens = _ListUnpickler(file).load()
    except Exception as error:
        raise UserError(f"{path}: refused, not a plain list of tokens ({error})") from None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{path}: not a plain list of tokens")
    return tokens


def _check_size(weights: dict[str, torch.Tensor], tokens: list[str], path: Path, config: ModelConfig) -> None:
    vocab_size, emb_sz = weights["0.encoder.weight"].shape
    if vocab_size != len(tokens):
        raise UserError(f"{path}: weights for {vocab_size:,} words, but {len(tokens):,} in the .pkl: not of one model")
    n_layers = len({key.split(".")[2] for key in weights if key.startswith("0.rnns.")})
    hidden = weights.get("0.rnns.0.weight_hh_l0_raw")
    n_hid = hidden.shape[1] if hidden is not None else config.n_hid
    if (emb_sz, n_hid, n_layers) != (config.emb_sz, config.n_hid, config.n_layers):
        raise UserError(
            f"{path} has emb_sz={emb_sz}, n_hid={n_hid}, n_layers={n_layers}, the model section asks for "
            f"{config.emb_sz}, {config.n_hid}, {config.n_layers}: set them alike, or model.pretrained=null"
        )
