"""The files of a pretrained language model in a folder: weights, tokens, SentencePiece model, sizes.

Publishers lay them out in their own ways, with a file name for each direction, kind and corpus; a name that decides between
two files does so by whole words in it (`fwd`, `lm_bwd.pth`), and where names leave a choice, nothing is guessed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ulmfit_dist.errors import UserError

WEIGHT_SUFFIXES = (".pth", ".pt", ".h5", ".bin", ".ckpt")
"""Suffixes of files with weights; .h5 is fastai 0.7's, although its files are pickles."""
TOKEN_SUFFIXES = (".pkl", ".json", ".txt", ".pickle")
MAX_FILES = 2000
"""Maximum number of files of a folder, sub-folders included, that are looked at."""
MAX_DEPTH = 5
"""Maximum depth of the sub-folders that are looked at."""
_DIRECTIONS = {False: {"fwd", "forward", "forwards"}, True: {"bwd", "backward", "backwards"}}
_LEARNERS = re.compile(r"export|model|learner|learn|classifier|lm|ulmfit", re.IGNORECASE)
_TOKENS = re.compile(r"itos|vocab", re.IGNORECASE)
_OTHER_NETWORKS = re.compile(r"(?:^|[_.-])(?:head|cls|clas|classifier|clf|opt|optimizer)(?:[_.-]|$)", re.IGNORECASE)
_ENCODER = re.compile(r"(?:^|[_.-])enc(?:oder)?(?:[_.-]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class ModelFiles:
    """The files of one language model.

    Attributes:
        weights: file with the tensors, or with a whole Learner.
        tokens: file with the tokens by id; None: they are expected in the Learner.
        sp_model: SentencePiece model; None if there is none.
        backwards: direction by the names of file and folder; None if they do not contain it.
    """

    weights: Path
    tokens: Path | None
    sp_model: Path | None
    backwards: bool | None


def find_model_files(path: Path, backwards: bool = False) -> ModelFiles:
    """Return the files of a language model: `path` names the weights, or a folder with them in it or in its sub-folders.

    Args:
        backwards: which model to take from a folder that has both directions.

    Raises:
        UserError: there are no weights or tokens, or several that could be meant.
    """
    folder = path if path.is_dir() else path.parent
    files = list(_files(folder, MAX_DEPTH if path.is_dir() else 0))
    weights = _find_weights(path, files, backwards) if path.is_dir() else path
    return ModelFiles(
        weights=weights,
        tokens=_find_tokens(folder, weights, files),
        sp_model=_find_sp_model(folder, weights, files),
        backwards=_direction(weights, folder),
    )


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the files of a folder in the order of their names, those of sub-folders after its own."""
    waiting, number = [(folder, depth)], 0
    while waiting:
        parent, left = waiting.pop(0)
        for entry in sorted(os.scandir(parent), key=lambda entry: entry.name):
            number += 1
            if number > MAX_FILES:
                raise UserError(f"{folder}: more than {MAX_FILES:,} files: give the path of the file with the weights")
            if entry.is_dir(follow_symlinks=False):
                waiting += [(parent / entry.name, left - 1)] if left else []
            elif not entry.name.startswith("."):
                yield parent / entry.name


def _find_weights(folder: Path, files: Sequence[Path], backwards: bool) -> Path:
    candidates = [path for path in files if path.suffix.lower() in WEIGHT_SUFFIXES]
    candidates = candidates or [path for path in files if path.suffix == ".pkl" and _is_learner(path.stem)]
    if not candidates:
        raise UserError(
            f"{folder}: expected a .pth file with the weights and a .pkl file with the tokens, but there is no .pth"
        )
    of_direction = [path for path in candidates if _direction(path, folder) is backwards]
    if not of_direction and all(_direction(path, folder) is not None for path in candidates):
        wanted, present = ("backwards", "forwards") if backwards else ("forwards", "backwards")
        raise UserError(
            f"{folder}: only a model that reads {present} here, but model.backwards={str(backwards).lower()} needs one that "
            f"reads {wanted}: set it to {str(not backwards).lower()}, or use other weights"
        )
    candidates = of_direction or [path for path in candidates if _direction(path, folder) is None]
    for pattern in (_OTHER_NETWORKS, _ENCODER):
        candidates = [path for path in candidates if not pattern.search(path.stem)] or candidates
    if len(candidates) > 1:
        names = _names(candidates, folder)
        raise UserError(
            f"{folder}: expected one .pth file with the weights, but there are {names}: give the path of one file"
        )
    return candidates[0]


def _is_learner(stem: str) -> bool:
    return bool(_LEARNERS.search(stem)) and not _TOKENS.search(stem)


def _find_tokens(folder: Path, weights: Path, files: Sequence[Path]) -> Path | None:
    """Return the file of tokens: named as the weights (`wiki.pkl` for `wiki_encoder.pth`), else itos or vocab.

    Raises:
        UserError: several files could be meant, or there is none beside a file of tensors.
    """
    stems = (weights.stem, re.sub(r"_enc(oder)?$", "", weights.stem))
    beside = [path for path in files if path.parent == weights.parent and path != weights]
    named = [path for path in beside if path.suffix in TOKEN_SUFFIXES and path.stem in stems]
    if named:
        return named[0]
    others = [path for path in files if path != weights and path.suffix.lower() in TOKEN_SUFFIXES]
    direction = _direction(weights, folder)
    others = [path for path in others if _direction(path, folder) in (None, direction)]
    for candidates in (
        [path for path in others if path.parent == weights.parent and _TOKENS.search(path.stem)],
        [path for path in others if path.parent == weights.parent and path.suffix == ".pkl"],
        [path for path in others if _TOKENS.search(path.stem)],
    ):
        if len(candidates) > 1:
            raise UserError(
                f"{folder}: expected one .pkl file with the tokens, but there are {_names(candidates, folder)}: give the "
                f"right file the name of the .pth"
            )
        if candidates:
            return candidates[0]
    if weights.suffix == ".pkl":
        return None
    raise UserError(f"{folder}: expected a .pth file with the weights and a .pkl file with the tokens, but there is no .pkl")


def _find_sp_model(folder: Path, weights: Path, files: Sequence[Path]) -> Path | None:
    """Return the SentencePiece model: a .model file, the one beside the weights if there are several."""
    models = [path for path in files if path.suffix == ".model"]
    beside = [path for path in models if path.parent == weights.parent]
    direction = [path for path in models if _direction(path, folder) == _direction(weights, folder)]
    for candidates in (models, beside, direction):
        if len(candidates) == 1:
            return candidates[0]
    if models:
        names = _names(models, folder)
        raise UserError(f"{folder}: expected one SentencePiece model (.model), but there are {names}: leave only one there")
    return None


def _direction(path: Path, folder: Path) -> bool | None:
    """Return whether the name of a file, or of a folder below `folder` that it is in, means backwards; None for neither."""
    words = {word for part in (*path.relative_to(folder).parts,) for word in re.split(r"[^a-z]+", part.lower())}
    means = [backwards for backwards, names in _DIRECTIONS.items() if words & names]
    return means[0] if len(means) == 1 else None


def _names(paths: Iterable[Path], folder: Path) -> str:
    names = [str(path.relative_to(folder)) for path in paths]
    return f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
