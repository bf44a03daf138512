"""Reader of fastai's weights (.pth) and vocabularies (.pkl) that runs no code in them.

Both are pickles. Tensors are read by torch's `weights_only`, which also allows the few harmless types in fastai's optimizer
state; vocabularies by an unpickler that imports nothing. Trade-off: files with any other type are refused.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit_dist.data.tokenizers.rules import SPECIAL_TOKENS
from ulmfit_dist.data.vocab import LONGEST_VOCAB
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import read_bounded

ENCODER_PREFIXES = ("0.module.", "0.", "")
"""Prefixes of an encoder's keys: in a classifier, in a language model, and in a file of the encoder only."""
PIECE = "\u2581"
"""SentencePiece's marker of the beginning of a word."""
SPECIAL_PIECES: dict[str, str] = {f"{PIECE}{token}": token for token in SPECIAL_TOKENS}
"""Special token by its piece: in fastai's SentencePiece models the pieces are used, and the tokens' own ids are not."""


class _ListUnpickler(pickle.Unpickler):
    """Unpickler of lists, strings and numbers; it refuses every import."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it imports {module}.{name}")


def find_files(path: Path) -> tuple[Path, Path]:
    """Return the file of weights (.pth) at a path, or in that folder, and the file of tokens (.pkl) beside it.

    The tokens are in the file of the same name (`wiki.pkl` for `wiki.pth` and `wiki_encoder.pth`), or in the only .pkl.

    Raises:
        UserError: there is no such file, or there are several.
    """
    weights = _only(path, "pth", "weights") if path.is_dir() else path
    names = (f"{weights.stem}.pkl", f"{weights.stem.removesuffix('_encoder')}.pkl")
    named = next((weights.with_name(name) for name in names if weights.with_name(name).is_file()), None)
    return weights, named or _only(weights.parent, "pkl", "tokens")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .pth by their keys in fastai's language model, without the head of a classifier.

    The file may come from `Learner.save`, for a language model or a classifier, with or without the optimizer, or from
    `save_encoder`.

    Raises:
        UserError: the file contains other types than tensors, is damaged, or does not contain an AWD-LSTM.
    """
    try:
        with torch.serialization.safe_globals(_parts_of_an_optimizer()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: refused: it is damaged or contains more than tensors ({type(error).__name__})") from None
    state = state.get("model", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: refused: it is not a state_dict of tensors")
    prefix = next((prefix for prefix in ENCODER_PREFIXES if f"{prefix}encoder.weight" in state), None)
    if prefix is None or state[f"{prefix}encoder.weight"].ndim != 2:
        raise UserError(f"{path}: not a state_dict of fastai's AWD-LSTM (no encoder.weight)")
    encoder = {f"0.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}
    return encoder | {key: value for key, value in state.items() if key.startswith("1.decoder.")}


def read_tokens(path: Path) -> list[str]:
    """Return the tokens in a .pkl, pieces of special tokens as tokens. Raises UserError if it contains anything else."""
    try:
        tokens = _ListUnpickler(io.BytesIO(read_bounded(path, LONGEST_VOCAB))).load()
    except Exception as error:
        raise UserError(f"{path}: refused: it is not a list of tokens ({error})") from None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{path}: not a list of tokens")
    return [SPECIAL_PIECES.get(token) or token for token in tokens]


def write_weights(state: dict[str, Tensor]) -> bytes:
    """Return the bytes of a .pth with these tensors."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def _only(folder: Path, suffix: str, content: str) -> Path:
    """Return the only file of the folder with this suffix."""
    paths = sorted(folder.glob(f"*.{suffix}"))
    if not paths:
        raise UserError(
            f"{folder}: expected a .pth file with the weights and a .pkl file with the tokens, but there is no .{suffix}"
        )
    if len(paths) > 1:
        fix = "give the path of one file" if suffix == "pth" else "give the right file the name of the .pth"
        names = ", ".join(path.name for path in paths)
        raise UserError(f"{folder}: expected one .{suffix} file with the {content}, but there are {names}: {fix}")
    return paths[0]


def _parts_of_an_optimizer() -> list[Any]:
    """Return the types in fastai's optimizer state beside tensors: fastcore's list and numpy's scalars."""
    from fastcore.foundation import L

    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [L, np.dtype, *names, *(type(np.dtype(name)) for name in ("f4", "f8", "i4", "i8"))]
