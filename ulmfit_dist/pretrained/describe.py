"""Facts of public models and of files with pretrained weights, for `ulmfit-dist pretrained`. No tensor is read."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ulmfit_dist.errors import UserError
from ulmfit_dist.pretrained.archives import RefusedArchiveError, is_archive, unpack
from ulmfit_dist.pretrained.download import cached_model
from ulmfit_dist.pretrained.model_files import find_model_files
from ulmfit_dist.pretrained.reader import describe_model, read_tokens
from ulmfit_dist.pretrained.registry import FASTAI_NAMES, PublicModel, find_public_model, public_models, unknown_name

_NUM_TOKENS = 12
"""Number of tokens that are shown, the first ones after the special tokens."""


def public_table() -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the columns and rows of all public models."""
    columns = ("name", "language", "network", "directions", "tokens", "source", "license")
    return columns, tuple(_row(model) for model in public_models().values())


def describe(name_or_path: str, backwards: bool) -> list[dict[str, Any]]:
    """Return the facts of a public model, and of each language model in its files, or of those at a path.

    Args:
        name_or_path: a public model; a file with weights, a folder, or an archive.
        backwards: the direction to show; a folder or archive that has both is described for both.

    Raises:
        UserError: it is neither, or its files cannot be used.
    """
    public = find_public_model(name_or_path)
    if public is None:
        path = Path(name_or_path).expanduser()
        if not path.exists():
            raise UserError(f"{name_or_path}: {unknown_name(name_or_path)} a file or folder")
        with _as_folder(path) as opened:
            return _describe_both(opened, backwards)
    backwards = FASTAI_NAMES.get(name_or_path, ("", backwards))[1]
    details = _details_of(public, backwards)
    folder = cached_model(public, backwards)
    return [details] if folder is None else [details, _describe_files(folder, backwards)]


def _row(model: PublicModel) -> tuple[str, ...]:
    directions = [name for name, addresses in (("fwd", model.forwards), ("bwd", model.backwards)) if addresses]
    sizes = [str(model.config.get(f"model.{key}", "?")) for key in ("emb_sz", "n_hid", "n_layers")]
    network = "QRNN" if model.config.get("model.arch") == "qrnn" else "AWD-LSTM"
    kind = "words" if model.config.get("tokenizer.type") == "word" else "pieces"
    network = f"{network} {'/'.join(sizes)}" if "?" not in sizes else network
    return model.name, model.language, network, " ".join(directions), kind, model.source, model.license


def _details_of(model: PublicModel, backwards: bool) -> dict[str, Any]:
    folder = cached_model(model, backwards)
    return {
        "name": model.name,
        "language": model.language,
        "source": f"{model.source}, {model.page}",
        "addresses": list(model.addresses(backwards)),
        "license": model.license,
        "trained on": model.trained_on,
        "tokenizer": model.tokenizer,
        **({"note": model.note} if model.note else {}),
        "config": dict(model.config),
        "cached in": str(folder) if folder is not None else "not downloaded",
    }


@contextmanager
def _as_folder(path: Path) -> Iterator[Path]:
    """Return a path, or a temporary folder with the content of an archive."""
    if not path.is_file() or not is_archive(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="ulmfit-dist-") as folder:
        try:
            unpack(path, Path(folder))
        except RefusedArchiveError as error:
            raise UserError(f"{path}: refused: {error}") from None
        yield Path(folder)


def _describe_both(path: Path, backwards: bool) -> list[dict[str, Any]]:
    """Return the facts of the files at a path, of both directions if a folder has both."""
    first = _describe_files(path, backwards)
    if path.is_dir() and first["direction"] != "not stated":
        try:
            find_model_files(path, not backwards)
        except UserError:
            return [first]
        return [first, _describe_files(path, not backwards)]
    return [first]


def _describe_files(path: Path, backwards: bool) -> dict[str, Any]:
    model = describe_model(path, backwards)
    tokens = read_tokens(model.files, model.shape.vocab_size)
    directions = {None: "not stated", False: "forwards", True: "backwards"}
    shape = model.shape
    return {
        "weights": str(model.files.weights),
        "format": model.format,
        "network": f"{'QRNN' if shape.arch == 'qrnn' else 'AWD-LSTM'}, {'with' if model.has_decoder else 'without'} decoder",
        "sizes": f"emb_sz={shape.emb_sz}, n_hid={shape.n_hid}, n_layers={shape.n_layers}",
        "direction": directions[model.files.backwards],
        "vocabulary": _vocabulary(tokens, shape.vocab_size),
        "tokens": " ".join(_ordinary(tokens)[:_NUM_TOKENS]),
        "tokens in": str(model.files.tokens or model.files.weights),
        "SentencePiece model": str(model.files.sp_model or "none"),
    }


def _vocabulary(tokens: list[str], vocab_size: int) -> str:
    """Return a line on number and kind of the tokens."""
    kinds = Counter("capitals" if token != token.lower() else "other" for token in _ordinary(tokens))
    pieces = sum(token.startswith("\u2581") for token in tokens)
    parts = [f"{len(tokens):,} tokens", "pieces of words" if pieces > len(tokens) / 10 else "words"]
    parts.append("cased" if kinds["capitals"] > len(tokens) / 20 else "lower-cased, or a script without capitals")
    if len(tokens) != vocab_size:
        parts.append(f"but the embedding has {vocab_size:,} rows: these files are not of one model")
    return ", ".join(parts)


def _ordinary(tokens: list[str]) -> list[str]:
    return [token for token in tokens if not token.lstrip("\u2581").startswith(("xx", "_unk_", "_pad_", "<"))]
