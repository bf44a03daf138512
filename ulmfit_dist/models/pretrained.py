"""Pretrained weights, converted to the vocabulary of a model.

Sources are fastai's downloads, fastai's files (`fastai_weights.py`), and exported language models. As in fastai, a token in
both vocabularies keeps its embedding, and any other gets the mean embedding. Trade-off: new tokens all start alike.
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
from ulmfit_dist.models import qrnn
from ulmfit_dist.models.bundle import find_model, load_model, read_bundle
from ulmfit_dist.models.encoder import Encoder
from ulmfit_dist.models.fastai_weights import PIECE, find_files, read_tokens, read_weights
from ulmfit_dist.models.registry import user_class

WIKITEXT = {"wt103_fwd": "WT103_FWD", "wt103_bwd": "WT103_BWD"}
QRNN_WEIGHT = "0.rnns.0.layers.0.linear.weight_raw"
"""Key of the first layer's weights of a QRNN, [3H, inputs]."""
DOWNLOAD_TIMEOUT = 60
"""Timeout of a silent server, in seconds."""


@dataclass
class Pretrained:
    """A pretrained language model, or only its encoder.

    Attributes:
        path: path of the weights.
        state: tensors by the keys of fastai's language model; without `1.decoder` if there is only an encoder.
        tokens: tokens by id.
        backwards: it was trained on reversed texts; None if its files do not record this.
    """

    path: Path
    state: dict[str, Tensor]
    tokens: list[str]
    backwards: bool | None = None

    def fitted_to(self, vocab: Sequence[str]) -> dict[str, Tensor]:
        """Return the state for another vocabulary, as in fastai's `load_pretrained`."""
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
        """Return how many tokens of a vocabulary are in this one."""
        known = set(self.tokens)
        return sum(token in known for token in vocab)

    def _rows(self, vocab: Sequence[str]) -> Tensor:
        """Return the row of each token in these weights, int64 [V]; -1 for missing tokens."""
        ids = {token: i for i, token in enumerate(self.tokens)}
        return torch.tensor([ids.get(token, -1) for token in vocab])


def load_pretrained(model: nn.Module, name: str, vocab: list[str], config: ModelConfig) -> int:
    """Load pretrained weights into a language model; tokens without an embedding get the mean, as in fastai.

    Args:
        model: a language model from `build_language_model` for `vocab`.
        name: value of model.pretrained in the config.
        vocab: tokens by id of the model.
        config: config of the model.

    Returns:
        The number of tokens of the vocabulary that have a pretrained embedding.

    Raises:
        UserError: the files are missing and cannot be downloaded, are not valid, or have weights of another size.
    """
    pretrained = open_pretrained(name, "model.pretrained", config)
    if not any(key.startswith("1.decoder.") for key in pretrained.state):
        raise UserError(
            f"{pretrained.path} contains only an encoder: set classifier.encoder to it, and model.pretrained to a language "
            f"model with its decoder"
        )
    _check(pretrained, vocab, config)
    _load(model, pretrained.fitted_to(vocab), pretrained.path)
    return pretrained.known(vocab)


def load_pretrained_encoder(encoder: Encoder, name: str, vocab: list[str], config: ModelConfig) -> int:
    """As `load_pretrained`, for the encoder of a classifier, like fastai's `text_classifier_learner(pretrained=True)`."""
    pretrained = open_pretrained(name, "classifier.encoder", config)
    _check(pretrained, vocab, config)
    state = pretrained.fitted_to(vocab)
    _load(encoder, {key.removeprefix("0."): value for key, value in state.items() if key.startswith("0.")}, pretrained.path)
    return pretrained.known(vocab)


def open_pretrained(name: str, key: str, config: ModelConfig) -> Pretrained:
    """Return the pretrained weights that a key of the config names.

    Args:
        name: wt103_fwd or wt103_bwd, which are downloaded by fastai and cached; a run directory or an exported language
            model; a .pth of fastai's, or its folder.
        key: the key of the config, for messages.
        config: config of the model that gets the weights.
    """
    path = _download(name) if name in WIKITEXT else Path(name).expanduser()
    folder = find_model(path, "lm")
    if folder is not None:
        exported = read_bundle(folder)
        _check_arch(folder, exported.config.model.arch, config)
        state = load_model(exported, trust=True).state_dict()  # trusted: the config names the same class
        return Pretrained(folder, state, exported.vocab, exported.config.model.backwards)
    if find_model(path, "classifier") is not None:
        raise UserError(f"{key}={name} is a classifier: give a language model, or a run directory that has one")
    if not path.exists():
        raise UserError(f"{key}={name}: neither {' nor '.join(WIKITEXT)}, nor a run, an exported model or a .pth file")
    weights, tokens = find_files(path)
    state = read_weights(weights)
    _check_arch(weights, qrnn.NAME if QRNN_WEIGHT in state else None, config)
    backwards = name == "wt103_bwd" if name in WIKITEXT else None
    return Pretrained(weights, state, read_tokens(tokens), backwards)


def fetch(name: str | None, runtime: Runtime) -> None:
    """Download fastai's weights on the first rank of each node, if `name` is one of them. Collective.

    Raises:
        UserError: on every rank, if a node cannot download them.
    """
    with runtime.fail_together():
        if name in WIKITEXT and runtime.is_local_main:
            _download(name)


def has_weights(name: str) -> bool:
    """Return whether fastai's weights of this name are in the cache of this machine."""
    from fastai.data.external import URLs, fastai_cfg

    try:
        return bool((fastai_cfg().path("model") / Path(getattr(URLs, WIKITEXT[name])).stem).is_dir())
    except OSError:
        return False


def describe_match(name: str, known: int, vocab: Sequence[str]) -> str:
    """Return a log line about pretrained weights and the vocabulary."""
    return (
        f"pretrained {name}: {known:,} of {len(vocab):,} tokens of the vocabulary have a pretrained embedding, the others "
        f"get the mean embedding"
    )


def _download(name: str) -> Path:
    from fastai.data.external import URLs, fastai_cfg, untar_data

    url = getattr(URLs, WIKITEXT[name])
    try:
        folder = fastai_cfg().path("model") / Path(url).stem
    except OSError as error:
        raise UserError(
            f"model.pretrained={name}: fastai's cache folder is not available ({error}): set FASTAI_HOME to a folder"
        ) from None
    if folder.is_dir():
        return Path(folder)
    try:
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            return Path(untar_data(url, c_key="model"))
    except Exception as error:
        raise UserError(
            f"model.pretrained={name}: {url} cannot be downloaded ({type(error).__name__}): download it on "
            f"a machine with a network and unpack it to {folder}, or set model.pretrained to a folder with its .pth and "
            f".pkl, or to null"
        ) from None


def _rows_or_mean(weights: Tensor, rows: Tensor) -> Tensor:
    """Return rows of weights, with the mean of all rows for -1."""
    taken = weights[rows]
    taken[rows < 0] = weights.mean(0)
    return taken


def _is_dropped_out(key: str, state: Mapping[str, Tensor]) -> bool:
    """Return whether a tensor is another one after dropout: files of fastai's first releases contain both."""
    parts = key.split(".")
    if "module" in parts:
        del parts[len(parts) - 1 - parts[::-1].index("module")]
    return f"{'.'.join(parts)}_raw" in state


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set the default timeout of sockets: fastai's downloader has none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check(pretrained: Pretrained, vocab: Sequence[str], config: ModelConfig) -> None:
    """Raise UserError if the weights do not fit their tokens, the config or the tokenizer of the texts."""
    weights, path, tokens = pretrained.state, pretrained.path, pretrained.tokens
    vocab_size, emb_sz = weights["0.encoder.weight"].shape
    if vocab_size != len(tokens):
        raise UserError(
            f"{path}: weights for {vocab_size:,} tokens, but the .pkl has {len(tokens):,}: give the two files of one model"
        )
    n_layers = (
        config.n_layers if user_class(config) else len({key.split(".")[2] for key in weights if key.startswith("0.rnns.")})
    )
    hidden = weights.get("0.rnns.0.weight_hh_l0_raw")
    if QRNN_WEIGHT in weights:
        hidden = weights[QRNN_WEIGHT][::3].t()  # a third of the rows for each gate
    n_hid = hidden.shape[-1] if hidden is not None and n_layers > 1 else config.n_hid  # a single layer has another width
    if (emb_sz, n_hid, n_layers) != (config.emb_sz, config.n_hid, config.n_layers):
        raise UserError(
            f"{path} has emb_sz={emb_sz}, n_hid={n_hid}, n_layers={n_layers}, but the model section has "
            f"{config.emb_sz}, {config.n_hid}, {config.n_layers}: set the values of the weights, or use other weights"
        )
    if pretrained.backwards not in (None, config.backwards):
        raise UserError(
            f"{path} was trained with model.backwards={str(pretrained.backwards).lower()}, but the config has "
            f"model.backwards={str(config.backwards).lower()}: set it to {str(pretrained.backwards).lower()}, or use other "
            f"weights"
        )
    if _has_pieces(tokens) != _has_pieces(vocab):
        of_weights, of_texts = ("pieces", "words") if _has_pieces(tokens) else ("words", "pieces")
        raise UserError(
            f"{path} was trained on {of_weights}, but the texts are tokenized to {of_texts}: set tokenizer.type to that "
            f"of the weights"
        )


def _check_arch(path: Path, arch: str | None, config: ModelConfig) -> None:
    """Raise UserError if the weights are of another class of encoder."""
    if arch != config.arch:
        of_weights, of_config = (f"model.arch={name}" if name else "AWD-LSTM" for name in (arch, config.arch))
        raise UserError(
            f"{path} has {of_weights}, but the config has {of_config}: set model.arch to that of the weights, or use other "
            f"weights"
        )


def _has_pieces(tokens: Sequence[str]) -> bool:
    return sum(token.startswith(PIECE) for token in tokens) > len(tokens) / 10


def _load(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{path}: not a fastai AWD-LSTM: {' '.join(str(error).split())[:300]}") from None
