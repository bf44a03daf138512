"""Pretrained weights, converted to the vocabulary of a model.

Sources are public models by name, files in fastai's formats (`pretrained/`), and exported language models. As in fastai, a
token in both vocabularies keeps its embedding, and any other gets the mean embedding. Trade-off: new tokens all start alike.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ulmfit_dist.config.schema import ModelConfig
from ulmfit_dist.data.token_store import MODEL_FILE
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import find_model, load_model, read_bundle
from ulmfit_dist.models.encoder import Encoder
from ulmfit_dist.models.fastai_tokens import PIECE, translate_tokens
from ulmfit_dist.models.registry import user_class
from ulmfit_dist.models.vocab_match import VocabMatch, match_vocab
from ulmfit_dist.pretrained.download import cached_model, download_model
from ulmfit_dist.pretrained.hub import is_hub_model, model_path, model_paths
from ulmfit_dist.pretrained.model_files import find_model_files
from ulmfit_dist.pretrained.reader import describe_model, read_state, read_tokens
from ulmfit_dist.pretrained.registry import FASTAI_NAMES, find_public_model, unknown_name
from ulmfit_dist.pretrained.state_keys import shape_of

WIKITEXT = {False: "WT103_FWD", True: "WT103_BWD"}
"""fastai's name of its English models' addresses, by direction."""
ENGLISH = "en"
DOWNLOAD_TIMEOUT = 60
"""Timeout of a silent server, in seconds."""


@dataclass
class Pretrained:
    """A pretrained language model, or only its encoder.

    Attributes:
        path: path of the weights.
        state: tensors by the keys of fastai's language model; without `1.decoder` if there is only an encoder.
        tokens: tokens by id.
        arch: as `model.arch`.
        backwards: it was trained on reversed texts; None if its files do not record this.
    """

    path: Path
    state: dict[str, Tensor]
    tokens: list[str]
    arch: str | None = None
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
        return state

    def _rows(self, vocab: Sequence[str]) -> Tensor:
        """Return the row of each token in these weights, int64 [V]; -1 for missing tokens."""
        ids = {token: i for i, token in enumerate(self.tokens)}
        return torch.tensor([ids.get(token, -1) for token in vocab])


def load_pretrained(model: nn.Module, name: str, vocab: list[str], config: ModelConfig) -> VocabMatch:
    """Load pretrained weights into a language model; tokens without an embedding get the mean, as in fastai.

    Args:
        model: a language model from `build_language_model` for `vocab`.
        name: value of model.pretrained in the config.
        vocab: tokens by id of the model.
        config: config of the model.

    Returns:
        The tokens that have a pretrained embedding.

    Raises:
        UserError: the files are missing and cannot be downloaded, are not valid, or have weights of another size.
    """
    pretrained = open_pretrained(name, "model.pretrained", config)
    if "1.decoder.weight" not in pretrained.state:
        raise UserError(
            f"{pretrained.path} contains only an encoder: set classifier.encoder to it, and model.pretrained to a language "
            f"model with its decoder"
        )
    _check(pretrained, vocab, config)
    state = pretrained.fitted_to(vocab)
    if "1.decoder.bias" not in state:  # fastai 0.7 has none
        state["1.decoder.bias"] = torch.zeros(len(vocab))
    _load(model, state, pretrained.path)
    return match_vocab(pretrained.tokens, vocab)


def load_pretrained_encoder(encoder: Encoder, name: str, vocab: list[str], config: ModelConfig) -> VocabMatch:
    """As `load_pretrained`, for the encoder of a classifier, like fastai's `text_classifier_learner(pretrained=True)`."""
    pretrained = open_pretrained(name, "classifier.encoder", config)
    _check(pretrained, vocab, config)
    state = pretrained.fitted_to(vocab)
    _load(encoder, {key.removeprefix("0."): value for key, value in state.items() if key.startswith("0.")}, pretrained.path)
    return match_vocab(pretrained.tokens, vocab)


def open_pretrained(name: str, key: str, config: ModelConfig) -> Pretrained:
    """Return the pretrained weights that a key of the config names.

    Args:
        name: a public model, which is downloaded if it is not in the cache; a run directory or an exported language model;
            `hf:USER/NAME`, one of the hub; a file with weights in one of fastai's formats, or a folder with it.
        key: the key of the config, for messages.
        config: config of the model that gets the weights.
    """
    path = locate(name, config.backwards)
    folder = find_model(path, "lm")
    if folder is not None:
        exported = read_bundle(folder)
        _check_arch(folder, exported.config.model.arch, config)
        state = load_model(exported, trust=True).state_dict()  # trusted: the config names the same class
        return Pretrained(folder, state, exported.vocab, exported.config.model.arch, exported.config.model.backwards)
    if find_model(path, "classifier") is not None:
        raise UserError(f"{key}={name} is a classifier: give a language model, or a run directory that has one")
    if not path.exists():
        raise UserError(f"{key}={name}: {unknown_name(name)} a run, an exported model or a file with weights")
    model = describe_model(path, config.backwards)
    _check_arch(model.files.weights, model.shape.arch, config)
    tokens = translate_tokens(read_tokens(model.files, model.shape.vocab_size))
    backwards = _direction(name) if find_public_model(name) else model.files.backwards
    state = read_state(model.files.weights)
    state["0.encoder_dp.emb.weight"] = state["0.encoder.weight"]  # tied, and not in every file
    return Pretrained(model.files.weights, state, tokens, model.shape.arch, backwards)


def locate(name: str, backwards: bool) -> Path:
    """Return the path of pretrained weights: that of a public model in the cache, downloaded if it is not there."""
    model = find_public_model(name)
    if model is None:
        return model_path(name).expanduser()
    backwards = FASTAI_NAMES[name][1] if name in FASTAI_NAMES else backwards
    return _download(name, backwards) if model.name == ENGLISH else download_model(model, backwards)


def sp_model_of(name: str, backwards: bool) -> Path:
    """Return the SentencePiece model of pretrained weights. Raises UserError if they have none."""
    path = locate(name, backwards)
    folder = find_model(path, "lm")
    file = folder / MODEL_FILE if folder is not None else find_model_files(path, backwards).sp_model
    if file is None or not file.is_file():
        raise UserError(
            f"tokenizer.sp_model=pretrained: {path} has no SentencePiece model: set tokenizer.sp_model to a file"
        )
    return file


def fetch(name: str | None, runtime: Runtime, backwards: bool = False) -> None:
    """Download a public model or one of the hub on the first rank of each node, if `name` is one. Collective.

    Raises:
        UserError: on every rank, if a node cannot download it.
    """
    with runtime.fail_together():
        if name is not None and runtime.is_local_main and find_public_model(name) is not None:
            locate(name, backwards)
    if name is not None and is_hub_model(name):
        model_paths([name], runtime)


def has_weights(name: str) -> bool:
    """Return whether a public model that reads forwards is in the cache of this machine."""
    model = find_public_model(name)
    if model is None:
        return False
    if model.name != ENGLISH:
        return cached_model(model, backwards=False) is not None
    try:
        return _fastai_folder(WIKITEXT[False]).is_dir()
    except OSError:
        return False


def _direction(name: str) -> bool | None:
    """Return whether fastai's name of a model means backwards; None for other names, whose direction the config chooses."""
    return FASTAI_NAMES[name][1] if name in FASTAI_NAMES else None


def _fastai_folder(url_name: str) -> Path:
    from fastai.data.external import URLs, fastai_cfg

    return Path(fastai_cfg().path("model") / Path(getattr(URLs, url_name)).stem)


def _download(name: str, backwards: bool) -> Path:
    """Return the folder of fastai's English model, downloaded by fastai into its own cache."""
    from fastai.data.external import URLs, untar_data

    url = getattr(URLs, WIKITEXT[backwards])
    try:
        folder = _fastai_folder(WIKITEXT[backwards])
    except OSError as error:
        raise UserError(
            f"model.pretrained={name}: fastai's cache folder is not available ({error}): set FASTAI_HOME to a folder"
        ) from None
    if folder.is_dir():
        return folder
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
    n_hid, n_layers = config.n_hid, config.n_layers
    if not user_class(config):
        shape = shape_of({key: tuple(value.shape) for key, value in weights.items()})
        n_layers = shape.n_layers
        n_hid = shape.n_hid if n_layers > 1 else config.n_hid  # a single layer has another width
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
        raise UserError(f"{path}: not the weights of this network: {' '.join(str(error).split())[:300]}") from None
