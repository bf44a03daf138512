"""Reader of a pretrained language model: tensors by this package's keys, tokens, sizes, from any of fastai's formats.

A format is recognized by its content, not by its name: a state_dict with the keys of fastai 0.7, 1.x or 2.x, or a whole
Learner. Nothing in the files runs (`restricted_pickle.py`). Trade-off: a file with objects of user-defined classes is read
without them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from ulmfit_dist.errors import UserError
from ulmfit_dist.pretrained.archives import is_archive
from ulmfit_dist.pretrained.model_files import ModelFiles, find_model_files
from ulmfit_dist.pretrained.object_graph import modules_in, state_dict_of, string_lists
from ulmfit_dist.pretrained.restricted_pickle import (
    MAX_PICKLE_BYTES,
    RefusedPickleError,
    RestrictedUnpickler,
    StubObject,
    TensorRef,
)
from ulmfit_dist.pretrained.state_keys import (
    EncoderShape,
    NotALanguageModelError,
    generation_of,
    shape_of,
    state_of,
    translate,
)
from ulmfit_dist.pretrained.torch_files import TorchFile, open_torch_file
from ulmfit_dist.utils.files import read_bounded

MAX_NETWORKS = 20
"""Maximum number of modules in a pickle that are looked at: a Learner's losses and metrics are modules, too."""
_HDF5, _SAFETENSORS = b"\x89HDF\r\n\x1a\n", b'{"'
_VOCABULARY_NAMES = ("itos", "vocab")


@dataclass(frozen=True)
class LanguageModel:
    """A pretrained language model whose tensors are still in its file.

    Attributes:
        files: where it was found.
        format: what was recognized, such as "state_dict of fastai 0.7".
        shape: its sizes.
        has_decoder: False if there is only the encoder.
    """

    files: ModelFiles
    format: str
    shape: EncoderShape
    has_decoder: bool


def describe_model(path: Path, backwards: bool = False) -> LanguageModel:
    """Return format and sizes of a language model; reads no tensor, and of its tokens only where they are.

    Raises:
        UserError: the file cannot be used; the message names what it looks like and what is missing.
    """
    files = find_model_files(path, backwards)
    with _opened(files.weights) as file:
        return _describe(files, file)


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights by the keys of this package, float32 where they were float16 or bfloat16.

    Raises:
        UserError: as `describe_model`.
    """
    with _opened(path) as file:
        _, references = _find_state(path, file)
        state = {key: file.tensor(reference) for key, reference in references.items()}
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def read_tokens(files: ModelFiles, vocab_size: int | None = None) -> list[str]:
    """Return the tokens by id, as they are in the file.

    Args:
        vocab_size: number of rows of the embedding, which decides between several lists of a Learner.

    Raises:
        UserError: there is no list of tokens.
    """
    if files.tokens is None:
        with _opened(files.weights) as file:
            return _tokens_in(files.weights, file.content, vocab_size)
    path = files.tokens
    try:
        content = read_bounded(path, MAX_PICKLE_BYTES)
        if path.suffix == ".json":
            return _tokens_in(path, json.loads(content), vocab_size)
        if path.suffix == ".txt":
            lines = content.decode("utf-8").split("\n")
            return lines[:-1] if lines[-1] == "" else lines
        return _tokens_in(path, RestrictedUnpickler(io.BytesIO(content)).content(), vocab_size)
    except (RefusedPickleError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: refused: it is not a list of tokens ({error})") from None


@contextmanager
def _opened(path: Path) -> Iterator[TorchFile]:
    try:
        if is_archive(path):
            raise UserError(f"{path}: an archive: unpack it, and give the folder with its files")
        with path.open("rb") as file:
            start = file.read(9)
        if start.startswith(_HDF5):
            raise UserError(f"{path}: refused: it is an HDF5 file, such as Keras writes: only PyTorch's files can be used")
        if start[8:].startswith(b"{") or start.startswith(_SAFETENSORS):
            raise UserError(f"{path}: refused: it is not a file of torch.save: it looks like safetensors or JSON")
        with open_torch_file(path) as torch_file:
            yield torch_file
    except (RefusedPickleError, OSError) as error:
        raise UserError(f"{path}: refused: {error}") from None


def _describe(files: ModelFiles, file: TorchFile) -> LanguageModel:
    form, state = _find_state(files.weights, file)
    try:
        shape = shape_of({key: reference.shape for key, reference in state.items()})
    except NotALanguageModelError as error:
        raise _not_ours(files.weights, error) from None
    return LanguageModel(files, form, shape, "1.decoder.weight" in state)


def _find_state(path: Path, file: TorchFile) -> tuple[str, dict[str, TensorRef]]:
    """Return the format and the tensors by translated key."""
    try:
        state = state_of(file.content)
        return f"state_dict of {generation_of(state)}", translate(state)
    except NotALanguageModelError as error:
        reason = error
    for module in islice(modules_in(file.content), MAX_NETWORKS):
        try:
            state = state_dict_of(module)
            return f"{_kind(file.content)}, {generation_of(state)}", translate(state)
        except NotALanguageModelError as error:
            reason = error
    if "not a state_dict" in str(reason):
        raise UserError(f"{path}: refused: {reason}") from None
    raise _not_ours(path, reason)


def _kind(content: Any) -> str:
    name = content.name if isinstance(content, StubObject) else "Learner" if isinstance(content, dict) else "network"
    return f"pickled {name.rpartition('.')[2]}"


def _not_ours(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: not a state_dict of fastai's AWD-LSTM or QRNN: {error}")


def _tokens_in(path: Path, content: Any, vocab_size: int | None) -> list[str]:
    """Return the list of tokens in an unpickled object: itself, or one with a vocabulary's name and the right length."""
    if isinstance(content, list) and content and all(isinstance(token, str) for token in content):
        return content
    lists = list(string_lists(content))
    named = [tokens for name, tokens in lists if any(part in name.lower() for part in _VOCABULARY_NAMES)]
    unnamed = [tokens for _, tokens in lists]
    for candidates in (_of_length(named, vocab_size), _of_length(unnamed, vocab_size)):
        if candidates:
            return candidates[0]
    if isinstance(content, dict) and content and all(isinstance(i, int) for i in content.values()):
        return [str(token) for token, _ in sorted(content.items(), key=lambda item: item[1])]
    raise UserError(f"{path}: not a list of tokens")


def _of_length(lists: Sequence[list[str]], vocab_size: int | None) -> list[list[str]]:
    return [tokens for tokens in lists if vocab_size is None or len(tokens) == vocab_size]
