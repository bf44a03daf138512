"""The whole configuration: each key with its type, its default and, in the line below it, its meaning.

This file is the manual. The string under a field is what `ulmfit-dist config` prints beside the key, so it is written
once. A config is composed from three layers, each winning over the one before: the defaults here, a YAML recipe, and
`key=value` words of the command line. Batch sizes are global: what one rank does follows from the number of ranks.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ulmfit_dist.errors import UserError, did_you_mean

SOURCES = ("folder", "csv", "json", "parquet", "hub", "bbc_news")
SPLITS = ("train", "valid", "unlabelled")


@dataclass
class DataConfig:
    """Where the texts come from, and which of them are for what."""

    source: str = "folder"
    """folder (a sub-folder per class), csv (TSV too), json (JSON lines), parquet, hub (a data set's name) or bbc_news."""
    path: str | None = None
    """Folder or file of the source; for hub, the data set's name. bbc_news needs none."""
    splits: dict[str, str] = field(default_factory=dict)
    """Which part of the source is train, valid and unlabelled: sub-folders, files (globs too) or hub splits."""
    text: list[str] = field(default_factory=lambda: ["text"])
    """Columns that hold the text; several are joined as fastai does, each marked with xxfld."""
    label: str | None = "label"
    """Column that holds the label. Rows with none (empty, or -1) train the language model only. null: no labels."""
    valid_pct: float = 0.1
    """Share of the training documents cut off to validate on, by seed, where no valid split is named."""
    limit: int | None = None
    """Use this many documents of each split at most, drawn by seed: for a first try."""
    on_error: str = "strict"
    """A text file or CSV with bytes that are not UTF-8: strict refuses it, replace reads them as U+FFFD."""
    subset: str | None = None
    """Name of the hub data set's configuration, where it has several."""
    shard_documents: int = 2000
    """Documents in a shard of the token store: the unit of work that is dealt to ranks."""
    cache: str = "cache"
    """Folder of the token stores. One store serves all runs with the same texts and tokenizer."""
    store: str | None = None
    """A prepared token store to train from as it is: then neither the texts nor spaCy are needed."""


@dataclass
class TokenizerConfig:
    """fastai's rules and spaCy's word tokenizer."""

    kind: str = "word"
    """word: fastai's rules around spaCy's tokenizer."""
    lang: str = "en"
    """spaCy's code of the language: en, de, fr, es, ..."""
    min_freq: int = 3
    """A token that occurs less often becomes xxunk."""
    max_vocab: int = 60000
    """Tokens in the vocabulary at most, the special ones included."""


@dataclass
class ModelConfig:
    """AWD-LSTM (Merity et al., 2017), as fastai builds it. Language model and classifier share the encoder."""

    emb_sz: int = 400
    """Width of the word embedding, and of the last LSTM layer."""
    n_hid: int = 1152
    """Width of the other LSTM layers."""
    n_layers: int = 3
    """Number of LSTM layers."""
    pretrained: str | None = None
    """Weights to start the language model from: wt103_fwd, wt103_bwd, or a folder with a .pth and a .pkl file."""
    backwards: bool = False
    """Read each text from its end to its beginning."""


@dataclass
class RuntimeConfig:
    """How the machine is used. Nothing here changes what is computed, except precision within its rounding."""

    precision: str = "auto"
    """no (fp32), bf16, fp16 (GPUs only), fp64 (CPU only, to compare runs), auto: bf16 or fp16 on a GPU, else no."""
    micro_batch_size: int | None = None
    """Rows or documents that a rank computes at a time; more are accumulated. null: all of the rank's at once."""
    deterministic: bool = False
    """Only deterministic algorithms, in torch and cuDNN. Slower."""
    detect_anomaly: bool = False
    """torch's anomaly detection: names the operation that made a NaN. Slow."""
    show_first_batch: bool = False
    """Print the shapes and the decoded text of each stage's first batch."""


@dataclass
class Phase:
    """One call of fit_one_cycle."""

    epochs: int = 1
    """Epochs of the phase."""
    lr: Any = 1e-3
    """Highest learning rate of the one-cycle schedule; [low, high] spreads it over the layer groups, geometrically."""
    freeze_to: int = 0
    """First layer group that is trained: -1 only the last one, -2 the last two, 0 all."""


@dataclass
class LMConfig:
    """Fine-tuning, or training, of the language model. Values are fastai's unless a recipe says otherwise."""

    global_batch_size: int = 64
    """Rows that the corpus is cut into, over all ranks."""
    seq_len: int = 72
    """Tokens of a row per step: the length of back-propagation through time."""
    drop_mult: float = 1.0
    """Factor on all dropouts of fastai's awd_lstm_lm_config."""
    valid_pct: float | None = None
    """Share of all documents, labelled or not, held out to validate the language model, by seed. null: the valid split."""
    wd: float = 0.1
    """Decoupled weight decay; biases and norms are spared."""
    alpha: float = 2.0
    """Activation regularization (AR) on the last layer's dropped-out output."""
    beta: float = 1.0
    """Temporal activation regularization (TAR) on the last layer's raw output."""
    moms: list[float] = field(default_factory=lambda: [0.8, 0.7, 0.8])
    """Adam's first beta at the start, the top and the end of a cycle."""
    grad_clip: float | None = None
    """Norm that the gradient is clipped to. null: no clipping."""
    phases: list[Phase] = field(default_factory=lambda: [Phase(1, 1e-2, -1), Phase(10, 1e-3, 0)])
    """The recipe: what is trained, how long, at which learning rate."""


@dataclass
class ClassifierConfig:
    """The classifier on the language model's encoder. Values are fastai's unless a recipe says otherwise."""

    global_batch_size: int = 64
    """Documents of a step, over all ranks."""
    seq_len: int = 72
    """Tokens that the encoder reads at a time."""
    max_len: int = 1440
    """The last tokens of a document that are pooled and learned from; what stands before is read only."""
    drop_mult: float = 0.5
    """Factor on all dropouts of fastai's awd_lstm_clas_config."""
    lin_ftrs: list[int] = field(default_factory=lambda: [50])
    """Widths of the head's hidden layers."""
    head_dropout: float = 0.1
    """Dropout after each hidden layer of the head; drop_mult does not scale it, as in fastai."""
    wd: float = 0.01
    """Decoupled weight decay; biases and norms are spared."""
    alpha: float = 2.0
    """Activation regularization (AR), as in the language model."""
    beta: float = 1.0
    """Temporal activation regularization (TAR), as in the language model."""
    moms: list[float] = field(default_factory=lambda: [0.8, 0.7, 0.8])
    """Adam's first beta at the start, the top and the end of a cycle."""
    grad_clip: float | None = None
    """Norm that the gradient is clipped to. null: no clipping."""
    phases: list[Phase] = field(
        default_factory=lambda: [
            Phase(1, 2e-2, -1),
            Phase(1, [1e-2 / 2.6**4, 1e-2], -2),
            Phase(1, [5e-3 / 2.6**4, 5e-3], -3),
            Phase(2, [1e-3 / 2.6**4, 1e-3], 0),
        ]
    )
    """The recipe: gradual unfreezing with discriminative learning rates."""


@dataclass
class TrackingConfig:
    """Weights & Biases, on rank 0 alone."""

    wandb: str = "auto"
    """online, offline, disabled, or auto: online for who is logged in, else offline. WANDB_MODE wins over auto."""
    project: str = "ulmfit"
    """Project of the run."""
    group: str | None = None
    """Group of the run: for several seeds of one recipe."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run."""


@dataclass
class Config:
    """All of it."""

    name: str = "run"
    """Name of the run, and of its folder in runs_dir."""
    seed: int = 42
    """Decides the cut of the data, the order of documents, the initial weights and the dropout."""
    runs_dir: str = "runs"
    """Folder that holds the run folders."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where the texts come from."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """How texts become tokens."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    """How the machine is used."""
    lm: LMConfig = field(default_factory=LMConfig)
    """The language model's training."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """The classifier's training."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """What is logged, and where."""

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name


def load_config(recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Compose the configuration.

    Args:
        recipe: a YAML file, or None for the defaults alone.
        overrides: words as `lm.global_batch_size=32`, later ones winning.

    Raises:
        UserError: an unreadable file, an unknown key, a value of the wrong type or out of range.
    """
    layers = [_read_yaml(Path(recipe))] if recipe is not None else []
    layers += [_read_override(word) for word in overrides]
    merged = OmegaConf.structured(Config)
    for layer, origin in layers:
        _refuse_unknown_keys(layer, Config, origin)
        try:
            merged = OmegaConf.merge(merged, layer)
        except OmegaConfBaseException as error:
            raise UserError(f"{origin}: {getattr(error, 'full_key', '')}: {_first_line(error)}") from None
    config = cast(Config, OmegaConf.to_object(merged))
    check_config(config)
    return config


def check_config(config: Config) -> None:
    """Refuse values that can be seen to be wrong without looking at the data. Raises UserError."""
    _one_of("data.source", config.data.source, SOURCES)
    _one_of("data.on_error", config.data.on_error, ("strict", "replace"))
    _one_of("tokenizer.kind", config.tokenizer.kind, ("word",))
    _one_of("runtime.precision", config.runtime.precision, ("auto", "no", "bf16", "fp16", "fp64"))
    _one_of("tracking.wandb", config.tracking.wandb, ("auto", "online", "offline", "disabled"))
    for split in config.data.splits:
        _one_of("a key of data.splits", split, SPLITS)
    if not config.name or "/" in config.name or config.name.startswith("."):
        raise UserError(f"name={config.name!r}: give a plain folder name, without '/' and not starting with '.'")
    if config.data.path is None and config.data.store is None and config.data.source != "bbc_news":
        raise UserError(f"data.path is not set: data.source={config.data.source} needs it")
    if not 0 < config.data.valid_pct < 1:
        raise UserError(f"data.valid_pct={config.data.valid_pct}: give a share between 0 and 1, such as 0.1")
    if config.lm.valid_pct is not None and not 0 < config.lm.valid_pct < 1:
        raise UserError(f"lm.valid_pct={config.lm.valid_pct}: give a share between 0 and 1, or null")
    if not config.data.text:
        raise UserError("data.text is empty: name at least one column")
    for key, value in _positive_integers(config):
        if value < 1:
            raise UserError(f"{key}={value}: give a whole number of at least 1")
    for stage, settings in (("lm", config.lm), ("classifier", config.classifier)):
        _check_stage(stage, settings)


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, for `config.yaml` in a run directory."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain dictionaries and lists."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def describe(config: Config) -> Iterator[tuple[str, str, str]]:
    """(dotted key, value as YAML, one-line meaning) of every key, in the order of this file."""
    yield from _describe(config, "")


def field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass of this file, by the field's name."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
            docs[cast(ast.Name, statement.target).id] = cast(str, cast(ast.Constant, below.value).value)
    return docs


def _describe(node: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    docs = field_docs(type(node))
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from _describe(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", _inline_yaml(value), docs[item.name]


def _inline_yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_inline_yaml(item) for item in value)}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_inline_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _read_yaml(path: Path) -> tuple[DictConfig, str]:
    if not path.is_file():
        raise UserError(f"{path}: no such config file; recipes lie in configs/")
    try:
        layer = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(layer, DictConfig):
        raise UserError(f"{path}: expected keys and values at the top level, as in configs/quickstart.yaml")
    return layer, str(path)


def _read_override(word: str) -> tuple[DictConfig, str]:
    key, equals, _ = word.partition("=")
    if not equals or not key:
        raise UserError(f"{word!r}: expected key=value, such as lm.global_batch_size=32")
    try:
        return OmegaConf.from_dotlist([word]), f"command line, {word}"
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"command line, {word}: {_first_line(error)}") from None


def _refuse_unknown_keys(layer: Any, cls: type, origin: str, prefix: str = "") -> None:
    """Walk a raw layer beside the dataclass that describes it."""
    known = {item.name: item for item in dataclasses.fields(cls)}
    for key in layer:
        if key not in known:
            raise UserError(f"{origin}: unknown key {prefix}{key}; {did_you_mean(str(key), known)}")
        value = layer._get_node(key)
        default = known[key].default_factory
        if isinstance(default, type) and dataclasses.is_dataclass(default):
            if not isinstance(value, DictConfig):
                raise UserError(f"{origin}: {prefix}{key} is a section: set a key in it, such as {prefix}{key}.KEY=...")
            _refuse_unknown_keys(value, default, origin, f"{prefix}{key}.")
        elif key == "phases":
            _refuse_unknown_phase_keys(layer[key], origin, f"{prefix}{key}")


def _refuse_unknown_phase_keys(phases: Any, origin: str, key: str) -> None:
    if not OmegaConf.is_list(phases):
        raise UserError(f"{origin}: {key} is a list: [{{freeze_to: -1, epochs: 1, lr: 1e-2}}, ...]")
    for number, phase in enumerate(phases):
        if not isinstance(phase, DictConfig):
            raise UserError(f"{origin}: {key}[{number}] must say epochs, lr and freeze_to, not {phase!r}")
        _refuse_unknown_keys(phase, Phase, origin, f"{key}[{number}].")


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{key}={value!r} is not known; {did_you_mean(value, known)}")


def _positive_integers(config: Config) -> Iterator[tuple[str, int]]:
    yield "data.shard_documents", config.data.shard_documents
    yield "tokenizer.min_freq", config.tokenizer.min_freq
    yield "tokenizer.max_vocab", config.tokenizer.max_vocab
    if config.data.limit is not None:
        yield "data.limit", config.data.limit
    if config.runtime.micro_batch_size is not None:
        yield "runtime.micro_batch_size", config.runtime.micro_batch_size
    for key in ("emb_sz", "n_hid", "n_layers"):
        yield f"model.{key}", getattr(config.model, key)
    for stage, settings in (("lm", config.lm), ("classifier", config.classifier)):
        yield f"{stage}.global_batch_size", settings.global_batch_size
        yield f"{stage}.seq_len", settings.seq_len
    yield "classifier.max_len", config.classifier.max_len


def _check_stage(stage: str, settings: LMConfig | ClassifierConfig) -> None:
    if len(settings.moms) != 3:
        raise UserError(f"{stage}.moms={settings.moms}: give three values, such as [0.8, 0.7, 0.8]")
    if settings.drop_mult < 0:
        raise UserError(f"{stage}.drop_mult={settings.drop_mult}: give a factor of at least 0")
    if isinstance(settings, ClassifierConfig) and not 0 <= settings.head_dropout < 1:
        raise UserError(f"{stage}.head_dropout={settings.head_dropout}: give a probability from 0 to below 1")
    if not settings.phases:
        raise UserError(f"{stage}.phases is empty: give at least one, such as [{{epochs: 1, lr: 1e-2}}]")
    for number, phase in enumerate(settings.phases):
        where = f"{stage}.phases[{number}]"
        if phase.epochs < 1:
            raise UserError(f"{where}.epochs={phase.epochs}: give a whole number of at least 1")
        rates = phase.lr if isinstance(phase.lr, list) else [phase.lr]
        if len(rates) > 2 or not all(isinstance(r, (int, float)) and not isinstance(r, bool) and r > 0 for r in rates):
            raise UserError(f"{where}.lr={phase.lr!r}: give one rate, such as 1e-2, or [low, high]")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
