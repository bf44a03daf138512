"""What a model starts from: weights that were trained elsewhere, fitted to the vocabulary at hand.

They are those that fastai keeps for download, files of fastai's (`fastai_weights.py`), or a language model that was exported
here. As in fastai, a word that they know keeps its embedding, and one that they lack gets the mean of all.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ulmfit_dist.config.schema import ModelConfig
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import find_model, load_model, read_bundle
from ulmfit_dist.models.encoder import Encoder
from ulmfit_dist.models.fastai_weights import PIECE, find_files, read_tokens, read_weights

WIKITEXT = {"wt103_fwd": "WT103_FWD", "wt103_bwd": "WT103_BWD"}
PATIENCE = 60
"""Seconds that a server may be silent."""


@dataclass
class Pretrained:
    """A language model that was trained elsewhere, or its encoder alone.

    Attributes:
        path: where it comes from.
        state: tensors by the keys of fastai's language model; those of an encoder alone have no `1.decoder`.
        tokens: by id.
        backwards: which way it reads; None where its files do not say.
    """

    path: Path
    state: dict[str, Tensor]
    tokens: list[str]
    backwards: bool | None = None

    def fitted_to(self, vocab: Sequence[str]) -> dict[str, Tensor]:
        """The state for another vocabulary, as fastai's `load_pretrained` makes it."""
        embedding = "0.encoder.weight"
        rows = self._rows(vocab)
        weight = _rows_or_mean(self.state[embedding], rows)
        state = {**self.state, embedding: weight, "1.decoder.weight": weight.clone()}
        if "0.encoder_dp.emb.weight" in state:
            state["0.encoder_dp.emb.weight"] = weight.clone()
        if "1.decoder.bias" in state:
            state["1.decoder.bias"] = _rows_or_mean(state["1.decoder.bias"], rows)
        return {key: value for key, value in state.items() if not _is_dropped_out(key, state)}

    def known(self, vocab: Sequence[str]) -> int:
        """How many tokens of a vocabulary it knows."""
        known = set(self.tokens)
        return sum(token in known for token in vocab)

    def _rows(self, vocab: Sequence[str]) -> Tensor:
        """The row of each token of a vocabulary in this one's weights, int64 [V]; -1 for tokens that are missing."""
        ids = {token: i for i, token in enumerate(self.tokens)}
        return torch.tensor([ids.get(token, -1) for token in vocab])


def load_pretrained(model: nn.Module, name: str, vocab: list[str], config: ModelConfig) -> int:
    """Give a language model pretrained weights; words that they lack get the mean embedding, as in fastai.

    Args:
        model: made by `build_language_model` for `vocab`.
        name: as model.pretrained in the config.
        vocab: tokens by id of the model.

    Returns:
        How many tokens of the vocabulary the weights know.

    Raises:
        UserError: no such files and no network, files that are not what they should be, weights of another size.
    """
    found = open_pretrained(name, "model.pretrained", config)
    if not any(key.startswith("1.decoder.") for key in found.state):
        raise UserError(
            f"{found.path} holds an encoder alone: give it as classifier.encoder, or a whole language model here"
        )
    _check(found, vocab, config)
    _load(model, found.fitted_to(vocab), found.path)
    return found.known(vocab)


def load_pretrained_encoder(encoder: Encoder, name: str, vocab: list[str], config: ModelConfig) -> int:
    """As `load_pretrained`, for the encoder of a classifier: as fastai's `text_classifier_learner(pretrained=True)` does."""
    found = open_pretrained(name, "classifier.encoder", config)
    _check(found, vocab, config)
    state = found.fitted_to(vocab)
    _load(encoder, {key.removeprefix("0."): value for key, value in state.items() if key.startswith("0.")}, found.path)
    return found.known(vocab)


def open_pretrained(name: str, key: str, config: ModelConfig) -> Pretrained:
    """Read what a config's key names.

    Args:
        name: wt103_fwd or wt103_bwd, which are fetched by fastai's own downloader and kept; a run directory or an exported
            language model; a .pth of fastai's, or the folder of one.
        key: what messages call it.
        config: of the model that is to have the weights.
    """
    place = _download(name) if name in WIKITEXT else Path(name).expanduser()
    folder = find_model(place, "lm")
    if folder is not None:
        exported = read_bundle(folder)
        _check_arch(folder, exported.config.model.arch, config)
        state = load_model(exported, trust=True).state_dict()  # it is the config's own class
        return Pretrained(folder, state, exported.vocab, exported.config.model.backwards)
    if find_model(place, "classifier") is not None:
        raise UserError(f"{key}={name} is a classifier: give a language model, or a run directory that has one")
    if not place.exists():
        raise UserError(f"{key}={name}: neither {' nor '.join(WIKITEXT)}, nor a run, an exported model or a .pth file")
    weights, tokens = find_files(place)
    _check_arch(weights, None, config)
    backwards = name == "wt103_bwd" if name in WIKITEXT else None
    return Pretrained(weights, read_weights(weights), read_tokens(tokens), backwards)


def fetch(name: str | None, runtime: Runtime) -> None:
    """Have fastai's weights on each node, downloaded by its first rank while the others wait. Collective.

    Raises:
        UserError: on every rank, where a node cannot fetch them.
    """
    with runtime.fail_together():
        if name in WIKITEXT and runtime.is_local_main:
            _download(name)


def has_weights(name: str) -> bool:
    """Return whether fastai's weights of this name are on this machine already."""
    from fastai.data.external import URLs, fastai_cfg

    try:
        return (fastai_cfg().path("model") / Path(getattr(URLs, WIKITEXT[name])).stem).is_dir()
    except OSError:
        return False


def describe_match(name: str, known: int, vocab: Sequence[str]) -> str:
    """What is said of pretrained weights that were fitted to a vocabulary."""
    return f"pretrained {name}: {known:,} of {len(vocab):,} words of the vocabulary known, the others get the mean embedding"


def _download(name: str) -> Path:
    from fastai.data.external import URLs, fastai_cfg, untar_data

    url = getattr(URLs, WIKITEXT[name])
    try:
        place = fastai_cfg().path("model") / Path(url).stem
    except OSError as error:
        raise UserError(
            f"model.pretrained={name}: fastai has no place for it: set FASTAI_HOME to a folder ({error})"
        ) from None
    if place.is_dir():
        return Path(place)
    try:
        with _patience(PATIENCE):
            return Path(untar_data(url, c_key="model"))
    except Exception as error:
        raise UserError(
            f"model.pretrained={name}: {url} cannot be fetched ({type(error).__name__}): fetch it on a machine with a "
            f"network and unpack it to {place}, or set model.pretrained to a folder with its .pth and .pkl, or to null"
        ) from None


def _rows_or_mean(weights: Tensor, rows: Tensor) -> Tensor:
    """Rows of weights, and the mean of all rows for -1."""
    taken = weights[rows]
    taken[rows < 0] = weights.mean(0)
    return taken


def _is_dropped_out(key: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is what dropout left of another one: files of fastai's first releases hold both."""
    parts = key.split(".")
    if "module" in parts:
        del parts[len(parts) - 1 - parts[::-1].index("module")]
    return f"{'.'.join(parts)}_raw" in state


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """Give up on a server that is silent for so long; fastai's downloader would wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check(found: Pretrained, vocab: Sequence[str], config: ModelConfig) -> None:
    """Raise UserError for weights that are not those of their words, or not for such a model and such texts."""
    weights, path = found.state, found.path
    vocab_size, emb_sz = weights["0.encoder.weight"].shape
    if vocab_size != len(found.tokens):
        raise UserError(f"{path}: weights for {vocab_size:,} words, but {len(found.tokens):,} in the .pkl: not of one model")
    n_layers = config.n_layers if config.arch else len({key.split(".")[2] for key in weights if key.startswith("0.rnns.")})
    hidden = weights.get("0.rnns.0.weight_hh_l0_raw")
    n_hid = hidden.shape[-1] if hidden is not None and n_layers > 1 else config.n_hid  # a single layer has another width
    if (emb_sz, n_hid, n_layers) != (config.emb_sz, config.n_hid, config.n_layers):
        raise UserError(
            f"{path} has emb_sz={emb_sz}, n_hid={n_hid}, n_layers={n_layers}, the model section asks for "
            f"{config.emb_sz}, {config.n_hid}, {config.n_layers}: set them alike, or take other weights"
        )
    if found.backwards not in (None, config.backwards):
        raise UserError(
            f"{path} reads {_way(not config.backwards)}, model.backwards={str(config.backwards).lower()} asks for "
            f"{_way(config.backwards)}: set it to {str(found.backwards).lower()}, or take other weights"
        )
    if _has_pieces(found.tokens) != _has_pieces(vocab):
        theirs, ours = ("pieces", "words") if _has_pieces(found.tokens) else ("words", "pieces")
        raise UserError(f"{path} reads {theirs}, the texts are {ours}: set tokenizer.type as it was for {path}")


def _check_arch(path: Path, arch: str | None, config: ModelConfig) -> None:
    """Raise UserError for weights of another kind of encoder."""
    if arch != config.arch:
        theirs, ours = (f"model.arch={name}" if name else "AWD-LSTM" for name in (arch, config.arch))
        raise UserError(f"{path} is of {theirs}, the config asks for {ours}: set model.arch as it was, or take another")


def _way(backwards: bool) -> str:
    return "backwards" if backwards else "forwards"


def _has_pieces(tokens: Sequence[str]) -> bool:
    return sum(token.startswith(PIECE) for token in tokens) > len(tokens) / 10


def _load(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: not an AWD-LSTM of fastai's: {' '.join(str(error).split())[:300]}") from None
