"""fastai's files of weights and words, read without running what they say.

Both are pickles. Tensors are read by torch's `weights_only`, which may make the few harmless things that fastai's optimizer
state has besides; the list of words by an unpickler that knows no classes.
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
"""What an encoder's keys begin with: in a classifier, in a language model, on its own."""


PIECE = "\u2581"
"""What SentencePiece marks the beginning of a word with."""
SPECIAL_PIECES: dict[str, str] = {f"{PIECE}{token}": token for token in SPECIAL_TOKENS}
"""fastai's SentencePiece makes pieces of the special tokens, and reads those: their own names come before, unused."""


class _ListUnpickler(pickle.Unpickler):
    """Reads lists, strings and numbers, and refuses to import anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def find_files(place: Path) -> tuple[Path, Path]:
    """The file of weights (.pth) at a place, itself or in its folder, and that of its tokens (.pkl) beside it.

    The tokens are in the file of the same name (`wiki.pkl` for `wiki.pth` and `wiki_encoder.pth`), or the only one there.

    Raises:
        UserError: none, or several.
    """
    weights = _only(place, "pth", "the weights") if place.is_dir() else place
    names = (f"{weights.stem}.pkl", f"{weights.stem.removesuffix('_encoder')}.pkl")
    named = next((weights.with_name(name) for name in names if weights.with_name(name).is_file()), None)
    return weights, named or _only(weights.parent, "pkl", "the tokens")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth, by the keys that they have in fastai's language model.

    It may be what `Learner.save` writes, of a language model or a classifier, with its optimizer or without, or what
    `save_encoder` writes. A classifier's head is left out.

    Raises:
        UserError: a file that holds more than tensors, is damaged, or has no AWD-LSTM in it.
    """
    try:
        with torch.serialization.safe_globals(_parts_of_an_optimizer()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: refused, it holds more than tensors or is damaged ({type(error).__name__})") from None
    state = state.get("model", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: refused, not a state by names")
    prefix = next((prefix for prefix in ENCODER_PREFIXES if f"{prefix}encoder.weight" in state), None)
    if prefix is None or state[f"{prefix}encoder.weight"].ndim != 2:
        raise UserError(f"{path}: not the state of fastai's AWD-LSTM (no encoder.weight)")
    encoder = {f"0.{key.removeprefix(prefix)}": value for key, value in state.items() if key.startswith(prefix)}
    return encoder | {key: value for key, value in state.items() if key.startswith("1.decoder.")}


def read_tokens(path: Path) -> list[str]:
    """The list of tokens in a .pkl, special ones by their own names. Raises UserError for a file with anything else."""
    try:
        tokens = _ListUnpickler(io.BytesIO(read_bounded(path, LONGEST_VOCAB))).load()
    except Exception as error:
        raise UserError(f"{path}: refused, not a plain list of tokens ({error})") from None
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"{path}: not a plain list of tokens")
    return [SPECIAL_PIECES.get(token) or token for token in tokens]


def write_weights(state: dict[str, Tensor]) -> bytes:
    """The content of a .pth."""
    content = io.BytesIO()
    torch.save(state, content)
    return content.getvalue()


def _only(folder: Path, ending: str, what: str) -> Path:
    found = sorted(folder.glob(f"*.{ending}"))
    if not found:
        raise UserError(
            f"{folder}: expected a .pth file with the weights and a .pkl file with the tokens, no .{ending} here"
        )
    if len(found) > 1:
        mend = "name one of them" if ending == "pth" else "give the right one the name of the .pth"
        raise UserError(f"{folder}: {what} are in which of {', '.join(path.name for path in found)}? {mend}")
    return found[0]


def _parts_of_an_optimizer() -> list[Any]:
    """What fastai's optimizer state is made of beside tensors: its list, and numpy's numbers by old and new name."""
    from fastcore.foundation import L

    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [L, np.dtype, *names, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8"))]
