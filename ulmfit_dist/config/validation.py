"""Values of a config that can be seen to be wrong without looking at the data, section by section."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ulmfit_dist.config.schema import (
    HIGHEST_DROPOUT,
    PRECISIONS,
    SOURCES,
    SPLITS,
    TARGETS,
    CheckpointConfig,
    ClassifierConfig,
    Config,
    DataConfig,
    LMConfig,
    Phase,
    RuntimeConfig,
    TrackingConfig,
)
from ulmfit_dist.errors import UserError, did_you_mean

BAD_IN_A_PROJECT = "/\\#?%:"
"""Characters that W&B takes in no project's name."""


def check_config(config: Config) -> None:
    """Refuse what is out of range, or does not go together. Raises UserError."""
    if not re.fullmatch(r"\w[\w.+-]*", config.name):
        raise UserError(f"name={config.name!r}: give a plain folder name of letters, digits, '.', '+', '-' and '_'")
    _one_of("tokenizer.type", config.tokenizer.type, ("word", "sentencepiece"))
    _one_of("tokenizer.sp_model_type", config.tokenizer.sp_model_type, ("unigram", "bpe"))
    for key, value in _positive_integers(config):
        if value < 1:
            raise UserError(f"{key}={value}: give a whole number of at least 1")
    _check_data(config.data)
    _check_runtime(config.runtime)
    _check_tracking(config.tracking, config.checkpoint)
    _check_origins(config)
    for stage, settings in (("lm", config.lm), ("classifier", config.classifier)):
        _check_stage(stage, settings, config.model.n_layers)
    if config.lm.valid_pct is not None and not 0 < config.lm.valid_pct < 1:
        raise UserError(f"lm.valid_pct={config.lm.valid_pct}: give a share between 0 and 1, or null")
    _check_classifier(config.classifier)
    _check_target(config.classifier, config.data)


def _check_data(data: DataConfig) -> None:
    _one_of("data.source", data.source, SOURCES)
    _one_of("data.on_duplicates", data.on_duplicates, ("warn", "drop", "error"))
    _one_of("data.on_error", data.on_error, ("strict", "replace", "skip"))
    if data.encoding is not None:
        _check_encoding(data.encoding)
    for split in data.splits:
        _one_of("a key of data.splits", split, SPLITS)
    if data.path is None and data.token_store is None and data.source not in ("bbc_news", "frame"):
        raise UserError(f"data.path is not set: data.source={data.source} needs it")
    if not 0 < data.valid_pct < 1:
        raise UserError(f"data.valid_pct={data.valid_pct}: give a share between 0 and 1, such as 0.1")
    if data.test_pct is not None and not 0 < data.test_pct < 1:
        raise UserError(f"data.test_pct={data.test_pct}: give a share between 0 and 1, such as 0.1, or null")
    if data.folds is not None and data.folds < 2:
        raise UserError(f"data.folds={data.folds}: give a whole number of at least 2, or null")
    if not 0 <= data.fold < (data.folds or 1):
        raise UserError(f"data.fold={data.fold}: give a number from 0 to below data.folds={data.folds}")
    if data.valid_col is not None and data.source in ("folder", "bbc_news"):
        raise UserError(f"data.valid_col={data.valid_col}: a {data.source} has no columns: leave it out")
    if data.valid_col is not None and data.splitter is not None:
        raise UserError(f"data.valid_col={data.valid_col} and data.splitter={data.splitter}: set one of them")
    if not data.text_col:
        raise UserError("data.text_col is empty: name at least one column")
    if data.file_col is not None and data.source not in ("csv", "json", "parquet"):
        raise UserError(f"data.file_col: data.source={data.source} has no column: it is for csv, json and parquet")
    if not data.label_delim:
        raise UserError(
            "data.label_delim is empty: name what separates a document's labels, as ';' (YAML wants quotes round some: '|')"
        )


def _check_encoding(encoding: str) -> None:
    try:
        "a".encode(encoding).decode(encoding)
    except (LookupError, UnicodeError):
        raise UserError(f"data.encoding={encoding!r} is not known: give one such as utf-8, cp1252 or utf-16-le") from None


def _check_runtime(runtime: RuntimeConfig) -> None:
    _one_of("runtime.precision", runtime.precision, PRECISIONS)
    if runtime.gradient_compression is not None:
        _one_of("runtime.gradient_compression", runtime.gradient_compression, ("fp16", "bf16"))
    if not 0 < runtime.join_timeout < float("inf"):
        raise UserError(f"runtime.join_timeout={runtime.join_timeout:g}: give minutes above 0, such as 5")
    canonical_ranks = runtime.canonical_ranks or 1
    if canonical_ranks & (canonical_ranks - 1):
        raise UserError(f"runtime.canonical_ranks={canonical_ranks}: give a power of two, such as 2, 4 or 8, or null")
    if runtime.canonical_ranks is not None and runtime.gradient_compression is not None:
        raise UserError(
            f"runtime.gradient_compression={runtime.gradient_compression} rounds the gradients whose sums "
            f"runtime.canonical_ranks={runtime.canonical_ranks} keeps exact: set one of them to null"
        )


def _check_tracking(tracking: TrackingConfig, checkpoint: CheckpointConfig) -> None:
    _one_of("tracking.wandb_mode", tracking.wandb_mode, ("auto", "online", "offline", "disabled"))
    project = tracking.project
    if not 1 <= len(project) <= 128 or set(project) & set(BAD_IN_A_PROJECT):
        raise UserError(f"tracking.project={project!r}: give at most 128 characters, none of {' '.join(BAD_IN_A_PROJECT)}")
    if not _is_positive(tracking.wandb_timeout):
        raise UserError(f"tracking.wandb_timeout={tracking.wandb_timeout}: give a number of seconds above 0")
    if checkpoint.interval_minutes is not None and not _is_positive(checkpoint.interval_minutes):
        raise UserError(f"checkpoint.interval_minutes={checkpoint.interval_minutes}: give a number above 0, or null")


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


def _check_stage(stage: str, settings: LMConfig | ClassifierConfig, n_layers: int) -> None:
    if len(settings.moms) != 3 or not all(0 <= mom < 1 for mom in settings.moms):
        raise UserError(f"{stage}.moms={settings.moms}: give three values from 0 to below 1, such as [0.8, 0.7, 0.8]")
    if not 0 <= settings.drop_mult * HIGHEST_DROPOUT[stage] < 1:
        highest = 1 / HIGHEST_DROPOUT[stage]
        raise UserError(f"{stage}.drop_mult={settings.drop_mult}: give a factor from 0 to below {highest:g}")
    for key in ("wd", "alpha", "beta"):
        if not (math.isfinite(getattr(settings, key)) and getattr(settings, key) >= 0):
            raise UserError(f"{stage}.{key}={getattr(settings, key)}: give a number of at least 0")
    _one_of(f"{stage}.export_epoch", settings.export_epoch, ("last", "best"))
    if settings.grad_clip is not None and not settings.grad_clip > 0:
        raise UserError(f"{stage}.grad_clip={settings.grad_clip}: give a norm above 0, or null")
    if not settings.phases:
        raise UserError(f"{stage}.phases is empty: give at least one, such as [{{epochs: 1, lr: 1e-2}}]")
    groups = n_layers + (1 if stage == "lm" else 2)
    for number, phase in enumerate(settings.phases):
        _check_phase(f"{stage}.phases[{number}]", phase, groups)


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


def _check_classifier(settings: ClassifierConfig) -> None:
    if settings.max_len < 2 * settings.seq_len:
        raise UserError(
            f"classifier.max_len={settings.max_len} is less than twice classifier.seq_len="
            f"{settings.seq_len}: short documents would be left out"
        )
    for width in settings.lin_ftrs:
        if width < 1:
            raise UserError(f"classifier.lin_ftrs={settings.lin_ftrs}: give widths of at least 1")
    if not 0 <= settings.head_dropout < 1:
        raise UserError(f"classifier.head_dropout={settings.head_dropout}: give a probability below 1")
    if not 0 <= settings.label_smoothing < 1:
        raise UserError(f"classifier.label_smoothing={settings.label_smoothing}: give a share below 1, such as 0.1")
    weights = settings.class_weights
    if weights not in (None, "balanced") and not (isinstance(weights, list) and all(map(_is_positive, weights))):
        raise UserError(f"classifier.class_weights={weights!r}: give balanced, null, or a list of numbers above 0")


def _check_target(settings: ClassifierConfig, data: DataConfig) -> None:
    """What a label is, and what goes with it."""
    _one_of("classifier.target", settings.target, TARGETS)
    if settings.target == "regression" and data.missing_label == "-1":
        raise UserError(
            "classifier.target=regression: -1 is a number, too: set data.missing_label=null, or to what stands for no number"
        )
    if not 0 < settings.threshold < 1:
        raise UserError(f"classifier.threshold={settings.threshold}: give a probability between 0 and 1")
    if settings.target != "category" and (settings.label_smoothing or settings.class_weights is not None):
        raise UserError(f"classifier.target={settings.target}: leave out label_smoothing and class_weights")
    y_range = settings.y_range
    if y_range is None:
        return
    if settings.target != "regression":
        raise UserError(f"classifier.y_range={y_range} is for classifier.target=regression: leave it out, or set that")
    if len(y_range) != 2 or not all(map(math.isfinite, y_range)) or y_range[0] >= y_range[1]:
        raise UserError(f"classifier.y_range={y_range}: give the lowest and the highest number, such as [0, 5]")


def _one_of(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UserError(f"{key}={value!r} is not known; {did_you_mean(value, known)}")


def _positive_integers(config: Config) -> Iterator[tuple[str, int]]:
    yield "data.documents_per_shard", config.data.documents_per_shard
    yield "tokenizer.min_freq", config.tokenizer.min_freq
    yield "tokenizer.max_vocab", config.tokenizer.max_vocab
    yield "tokenizer.sp_sample_documents", config.tokenizer.sp_sample_documents
    if config.tokenizer.sp_vocab_size is not None:
        yield "tokenizer.sp_vocab_size", config.tokenizer.sp_vocab_size
    if config.data.max_documents is not None:
        yield "data.max_documents", config.data.max_documents
    yield "data.num_proc", config.data.num_proc
    for key in ("micro_batch_size", "canonical_ranks"):
        if getattr(config.runtime, key) is not None:
            yield f"runtime.{key}", getattr(config.runtime, key)
    for key in ("emb_sz", "n_hid", "n_layers"):
        yield f"model.{key}", getattr(config.model, key)
    for stage, settings in (("lm", config.lm), ("classifier", config.classifier)):
        yield f"{stage}.global_batch_size", settings.global_batch_size
        yield f"{stage}.seq_len", settings.seq_len
        if settings.early_stopping_patience is not None:
            yield f"{stage}.early_stopping_patience", settings.early_stopping_patience
    yield "classifier.max_len", config.classifier.max_len
    if config.classifier.max_doc_tokens is not None:
        yield "classifier.max_doc_tokens", config.classifier.max_doc_tokens
    if config.checkpoint.interval_steps is not None:
        yield "checkpoint.interval_steps", config.checkpoint.interval_steps
    yield "checkpoint.keep_latest", config.checkpoint.keep_latest
    yield "tracking.log_interval", config.tracking.log_interval
    yield "tracking.num_samples", config.tracking.num_samples


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
