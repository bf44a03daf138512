"""A config put together: defaults, a YAML recipe, words of the command line, each winning over the one before.

OmegaConf merges and checks types; what it would say in its own terms, an unknown key or a value out of range, is said here
in the user's.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ulmfit_dist.config import (
    HIGHEST_DROPOUT,
    PRECISIONS,
    SOURCES,
    SPLITS,
    TARGETS,
    ClassifierConfig,
    Config,
    LMConfig,
    Phase,
)
from ulmfit_dist.errors import UserError, did_you_mean

BAD_IN_A_PROJECT = "/\\#?%:"
"""Characters that W&B takes in no project's name."""


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
    origin = "config"
    try:
        for layer, origin in layers:
            _refuse_unknown_keys(layer, Config, origin)
            merged = OmegaConf.merge(merged, layer)
        config = cast(Config, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"{origin}: {getattr(error, 'full_key', None) or 'config'}: {_first_line(error)}") from None
    if config.runtime.precision == "False":
        config.runtime.precision = "no"  # a bare no is YAML's word for false
    check_config(config)
    return config


def check_config(config: Config) -> None:
    """Refuse values that can be seen to be wrong without looking at the data. Raises UserError."""
    _one_of("data.source", config.data.source, SOURCES)
    _one_of("data.on_error", config.data.on_error, ("strict", "replace", "skip"))
    _one_of("tokenizer.kind", config.tokenizer.kind, ("word", "sentencepiece"))
    _one_of("tokenizer.model_type", config.tokenizer.model_type, ("unigram", "bpe"))
    _one_of("runtime.precision", config.runtime.precision, PRECISIONS)
    if config.runtime.compress_gradients is not None:
        _one_of("runtime.compress_gradients", config.runtime.compress_gradients, ("fp16", "bf16"))
    _one_of("tracking.wandb", config.tracking.wandb, ("auto", "online", "offline", "disabled"))
    for split in config.data.splits:
        _one_of("a key of data.splits", split, SPLITS)
    if not re.fullmatch(r"\w[\w.+-]*", config.name):
        raise UserError(f"name={config.name!r}: give a plain folder name of letters, digits, '.', '+', '-' and '_'")
    if config.data.path is None and config.data.store is None and config.data.source not in ("bbc_news", "frame"):
        raise UserError(f"data.path is not set: data.source={config.data.source} needs it")
    if not 0 < config.data.valid_pct < 1:
        raise UserError(f"data.valid_pct={config.data.valid_pct}: give a share between 0 and 1, such as 0.1")
    if config.data.folds is not None and config.data.folds < 2:
        raise UserError(f"data.folds={config.data.folds}: give a whole number of at least 2, or null")
    if not 0 <= config.data.fold < (config.data.folds or 1):
        raise UserError(f"data.fold={config.data.fold}: give a number from 0 to below data.folds={config.data.folds}")
    if config.lm.valid_pct is not None and not 0 < config.lm.valid_pct < 1:
        raise UserError(f"lm.valid_pct={config.lm.valid_pct}: give a share between 0 and 1, or null")
    if config.data.valid_col is not None and config.data.source in ("folder", "bbc_news"):
        raise UserError(f"data.valid_col={config.data.valid_col}: a {config.data.source} has no columns: leave it out")
    if config.data.valid_col is not None and config.data.splitter is not None:
        raise UserError(f"data.valid_col={config.data.valid_col} and data.splitter={config.data.splitter}: set one of them")
    if not config.data.text:
        raise UserError("data.text is empty: name at least one column")
    if config.data.text_file is not None and config.data.source not in ("csv", "json", "parquet"):
        raise UserError(f"data.text_file: data.source={config.data.source} has no column: it is for csv, json and parquet")
    for key, value in _positive_integers(config):
        if value < 1:
            raise UserError(f"{key}={value}: give a whole number of at least 1")
    project = config.tracking.project
    if not 1 <= len(project) <= 128 or set(project) & set(BAD_IN_A_PROJECT):
        raise UserError(f"tracking.project={project!r}: give at most 128 characters, none of {' '.join(BAD_IN_A_PROJECT)}")
    if not (math.isfinite(config.tracking.patience) and config.tracking.patience > 0):
        raise UserError(f"tracking.patience={config.tracking.patience}: give a number of seconds above 0")
    minutes = config.checkpoint.every_minutes
    if minutes is not None and not (math.isfinite(minutes) and minutes > 0):
        raise UserError(f"checkpoint.every_minutes={minutes}: give a number above 0, or null")
    virtual_ranks = config.runtime.virtual_ranks or 1
    if virtual_ranks & (virtual_ranks - 1):
        raise UserError(f"runtime.virtual_ranks={virtual_ranks}: give a power of two, such as 2, 4 or 8, or null")
    if config.runtime.virtual_ranks is not None and config.runtime.compress_gradients is not None:
        raise UserError(
            f"runtime.compress_gradients={config.runtime.compress_gradients} rounds the gradients whose sums "
            f"runtime.virtual_ranks={config.runtime.virtual_ranks} keeps exact: set one of them to null"
        )
    _check_origins(config)
    for stage, settings in (("lm", config.lm), ("classifier", config.classifier)):
        _check_stage(stage, settings, config.model.n_layers)
    if config.classifier.max_len < 2 * config.classifier.seq_len:
        raise UserError(
            f"classifier.max_len={config.classifier.max_len} is less than twice classifier.seq_len="
            f"{config.classifier.seq_len}: short documents would be left out"
        )
    _one_of("classifier.target", config.classifier.target, TARGETS)
    if not config.data.label_delim:
        raise UserError(
            "data.label_delim is empty: name what separates a document's labels, as ';' (YAML wants quotes round some: '|')"
        )
    if config.classifier.target == "regression" and config.data.no_label == "-1":
        raise UserError(
            "classifier.target=regression: -1 is a number, too: set data.no_label=null, or to what stands for no number"
        )
    if not 0 < config.classifier.threshold < 1:
        raise UserError(f"classifier.threshold={config.classifier.threshold}: give a probability between 0 and 1")
    _check_y_range(config.classifier)
    for width in config.classifier.lin_ftrs:
        if width < 1:
            raise UserError(f"classifier.lin_ftrs={config.classifier.lin_ftrs}: give widths of at least 1")
    if not 0 <= config.classifier.head_dropout < 1:
        raise UserError(f"classifier.head_dropout={config.classifier.head_dropout}: give a probability below 1")
    if not 0 <= config.classifier.label_smoothing < 1:
        raise UserError(f"classifier.label_smoothing={config.classifier.label_smoothing}: give a share below 1, such as 0.1")
    weights = config.classifier.class_weights
    if weights not in (None, "balanced") and not (isinstance(weights, list) and all(map(_is_positive, weights))):
        raise UserError(f"classifier.class_weights={weights!r}: give balanced, null, or a list of numbers above 0")
    if config.classifier.target != "category" and (config.classifier.label_smoothing or weights is not None):
        raise UserError(f"classifier.target={config.classifier.target}: leave out label_smoothing and class_weights")


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, for `config.yaml` in a run directory."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain dictionaries and lists."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def describe(config: Config | Phase) -> Iterator[tuple[str, str, str]]:
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
    yield "tokenizer.sample_documents", config.tokenizer.sample_documents
    if config.tokenizer.pieces is not None:
        yield "tokenizer.pieces", config.tokenizer.pieces
    if config.data.limit is not None:
        yield "data.limit", config.data.limit
    yield "runtime.num_workers", config.runtime.num_workers
    for key in ("micro_batch_size", "virtual_ranks"):
        if getattr(config.runtime, key) is not None:
            yield f"runtime.{key}", getattr(config.runtime, key)
    for key in ("emb_sz", "n_hid", "n_layers"):
        yield f"model.{key}", getattr(config.model, key)
    for stage, settings in (("lm", config.lm), ("classifier", config.classifier)):
        yield f"{stage}.global_batch_size", settings.global_batch_size
        yield f"{stage}.seq_len", settings.seq_len
        if settings.early_stopping is not None:
            yield f"{stage}.early_stopping", settings.early_stopping
    yield "classifier.max_len", config.classifier.max_len
    if config.classifier.truncate_to is not None:
        yield "classifier.truncate_to", config.classifier.truncate_to
    if config.checkpoint.every_steps is not None:
        yield "checkpoint.every_steps", config.checkpoint.every_steps
    yield "checkpoint.keep", config.checkpoint.keep
    yield "tracking.log_every", config.tracking.log_every
    yield "tracking.samples", config.tracking.samples


def _check_y_range(settings: ClassifierConfig) -> None:
    y_range = settings.y_range
    if y_range is None:
        return
    if settings.target != "regression":
        raise UserError(f"classifier.y_range={y_range} is for classifier.target=regression: leave it out, or set that")
    if len(y_range) != 2 or not all(map(math.isfinite, y_range)) or y_range[0] >= y_range[1]:
        raise UserError(f"classifier.y_range={y_range}: give the lowest and the highest number, such as [0, 5]")


def _check_stage(stage: str, settings: LMConfig | ClassifierConfig, n_layers: int) -> None:
    if len(settings.moms) != 3 or not all(0 <= mom < 1 for mom in settings.moms):
        raise UserError(f"{stage}.moms={settings.moms}: give three values from 0 to below 1, such as [0.8, 0.7, 0.8]")
    if not 0 <= settings.drop_mult * HIGHEST_DROPOUT[stage] < 1:
        highest = 1 / HIGHEST_DROPOUT[stage]
        raise UserError(f"{stage}.drop_mult={settings.drop_mult}: give a factor from 0 to below {highest:g}")
    for key in ("wd", "alpha", "beta"):
        if not (math.isfinite(getattr(settings, key)) and getattr(settings, key) >= 0):
            raise UserError(f"{stage}.{key}={getattr(settings, key)}: give a number of at least 0")
    _one_of(f"{stage}.select", settings.select, ("last", "best"))
    if settings.grad_clip is not None and not settings.grad_clip > 0:
        raise UserError(f"{stage}.grad_clip={settings.grad_clip}: give a norm above 0, or null")
    if not settings.phases:
        raise UserError(f"{stage}.phases is empty: give at least one, such as [{{epochs: 1, lr: 1e-2}}]")
    groups = n_layers + (1 if stage == "lm" else 2)
    for number, phase in enumerate(settings.phases):
        _check_phase(f"{stage}.phases[{number}]", phase, groups)


def _check_origins(config: Config) -> None:
    """What the models start from, as far as names can tell."""
    if config.classifier.encoder == "pretrained" and config.model.pretrained is None:
        raise UserError("classifier.encoder=pretrained needs model.pretrained: set it, such as model.pretrained=wt103_fwd")
    if config.model.pretrained == ("wt103_fwd" if config.model.backwards else "wt103_bwd"):
        right, wrong = ("wt103_bwd", "wt103_fwd") if config.model.backwards else ("wt103_fwd", "wt103_bwd")
        raise UserError(
            f"model.pretrained={wrong} reads the other way than model.backwards={str(config.model.backwards).lower()}: "
            f"set model.pretrained={right}"
        )


def _check_phase(where: str, phase: Phase, groups: int) -> None:
    if phase.epochs < 1:
        raise UserError(f"{where}.epochs={phase.epochs}: give a whole number of at least 1")
    if not -groups <= phase.freeze_to < groups:
        raise UserError(f"{where}.freeze_to={phase.freeze_to}: the model has {groups} layer groups; -1 is the last, 0 all")
    rates = phase.lr if isinstance(phase.lr, list) else [phase.lr]
    if len(rates) not in (1, 2) or not all(_is_positive(rate) for rate in rates):
        raise UserError(f"{where}.lr={phase.lr!r}: give one rate, such as 1e-2, or [low, high]")
    if phase.pct_start is not None and not 0 < phase.pct_start < 1:
        raise UserError(f"{where}.pct_start={phase.pct_start}: give a share between 0 and 1, such as 0.3, or null")
    if phase.div is not None and not (math.isfinite(phase.div) and phase.div >= 1):
        raise UserError(f"{where}.div={phase.div}: give a number of at least 1, such as 5, or null")


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
