"""Validation of a config without its data: the rule of each field, then rules across fields.

The rule of a single field is declared in `schema.py`; here are rules that need more than one. The first violation ends the
check, so a config with several is fixed one at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ulmfit_dist.config.fields import Rule, is_optional, rule_of, type_hints
from ulmfit_dist.config.schema import (
    SPLITS,
    ClassifierConfig,
    Config,
    DataConfig,
    ModelConfig,
    Phase,
    RuntimeConfig,
    TrackingConfig,
)
from ulmfit_dist.errors import UserError, did_you_mean


def check_config(config: Config) -> None:
    """Raise UserError if a value is invalid, or contradicts another one."""
    _check_fields(config)
    _check_split_names(config.data)
    _check_path(config.data)
    _check_fold(config.data)
    _check_columns(config.data)
    _check_exact_sums(config.runtime)
    _check_pretrained_encoder(config)
    _check_sp_model_of_weights(config)
    _check_direction(config.model)
    _check_frozen_layers("lm", config.lm.phases, config.model.n_layers + 1)
    _check_frozen_layers("classifier", config.classifier.phases, config.model.n_layers + 2)
    _check_frozen_layers("self_training", config.self_training.phases, config.model.n_layers + 2)
    _check_max_len(config.classifier)
    _check_missing_number(config.classifier, config.data)
    _check_category_only(config.classifier)
    _check_regression_only(config.classifier)
    check_probabilities_only(config.classifier)
    _check_unlabelled(config.classifier)
    _check_trackers(config.tracking)


def _check_fields(section: Any, prefix: str = "") -> None:
    """Check each value of a config dataclass, its sections and phases against the field's rule."""
    hints = type_hints(type(section))
    for item in dataclasses.fields(section):
        key, value, rule = f"{prefix}{item.name}", getattr(section, item.name), rule_of(item)
        if dataclasses.is_dataclass(value):
            _check_fields(value, f"{key}.")
        elif rule is not None and (value is not None or not is_optional(hints[item.name])):
            _check_rule(key, value, rule, is_optional(hints[item.name]))
        if item.name == "phases":
            for number, phase in enumerate(value):
                _check_fields(phase, f"{key}[{number}].")


def _check_rule(key: str, value: Any, rule: Rule, is_optional: bool) -> None:
    """Raise UserError if the rule of a field rejects its value."""
    if rule.accepts(value):
        return
    if rule.choices:
        raise UserError(f"{key}={value!r} is not known; {did_you_mean(value, rule.choices)}")
    raise UserError(f"{key}={value!r}: give {rule.expected}{', or null' if is_optional else ''}")


def _check_split_names(data: DataConfig) -> None:
    """Check the keys of data.splits."""
    for split in data.splits:
        if split not in SPLITS:
            raise UserError(f"a key of data.splits={split!r} is not known; {did_you_mean(split, SPLITS)}")


def _check_path(data: DataConfig) -> None:
    """Check that a source on disk or on the hub has a path, unless a token store replaces it."""
    if data.path is None and data.token_store is None and data.source not in ("bbc_news", "frame"):
        raise UserError(f"data.path is not set: data.source={data.source} requires it")


def _check_fold(data: DataConfig) -> None:
    """Check that data.fold is one of data.folds."""
    if not 0 <= data.fold < (data.folds or 1):
        raise UserError(f"data.fold={data.fold}: give a number from 0 to below data.folds={data.folds}")


def _check_columns(data: DataConfig) -> None:
    """Check that keys for columns are set for tables only, and that one key decides the validation rows."""
    if data.valid_col is not None and data.source in ("folder", "bbc_news"):
        raise UserError(f"data.valid_col={data.valid_col}: data.source={data.source} has no columns: set it to null")
    if data.valid_col is not None and data.splitter is not None:
        raise UserError(f"data.valid_col={data.valid_col} and data.splitter={data.splitter}: set one of them to null")
    if data.file_col is not None and data.source not in ("csv", "json", "parquet"):
        raise UserError(f"data.file_col: data.source={data.source} has no column: it is for csv, json and parquet")


def _check_exact_sums(runtime: RuntimeConfig) -> None:
    """Check that gradients summed in a fixed order are not rounded for the exchange."""
    if runtime.canonical_ranks is not None and runtime.gradient_compression is not None:
        raise UserError(
            f"runtime.gradient_compression={runtime.gradient_compression} rounds the gradients whose sums "
            f"runtime.canonical_ranks={runtime.canonical_ranks} keeps exact: set one of them to null"
        )


def _check_pretrained_encoder(config: Config) -> None:
    """Check that there are pretrained weights if the classifier starts from them."""
    if config.classifier.encoder == "pretrained" and config.model.pretrained is None:
        raise UserError("classifier.encoder=pretrained needs model.pretrained: set it, such as model.pretrained=wt103_fwd")


def _check_sp_model_of_weights(config: Config) -> None:
    """Check that there are pretrained weights if the tokenizer is theirs."""
    if config.tokenizer.sp_model == "pretrained" and config.model.pretrained is None and config.encoder_source is None:
        raise UserError("tokenizer.sp_model=pretrained needs model.pretrained: set it, such as model.pretrained=de")


def _check_direction(model: ModelConfig) -> None:
    """Check that Wikipedia weights read in the direction of the model."""
    expected, opposite = ("wt103_bwd", "wt103_fwd") if model.backwards else ("wt103_fwd", "wt103_bwd")
    if model.pretrained == opposite:
        raise UserError(
            f"model.pretrained={opposite} does not read in the direction of model.backwards={str(model.backwards).lower()}: "
            f"set model.pretrained={expected}"
        )


def _check_frozen_layers(stage: str, phases: Sequence[Phase], num_groups: int) -> None:
    """Check that freeze_to of each phase is one of the model's layer groups."""
    for number, phase in enumerate(phases):
        if not -num_groups <= phase.freeze_to < num_groups:
            key = f"{stage}.phases[{number}].freeze_to"
            raise UserError(f"{key}={phase.freeze_to}: the model has {num_groups} layer groups; -1 is the last, 0 all")


def _check_max_len(settings: ClassifierConfig) -> None:
    """Check that the pooled tokens span two chunks of the encoder at least."""
    if settings.max_len < 2 * settings.seq_len:
        raise UserError(
            f"classifier.max_len={settings.max_len} is less than twice classifier.seq_len="
            f"{settings.seq_len}: short documents would be left out"
        )


def _check_missing_number(settings: ClassifierConfig, data: DataConfig) -> None:
    """Check that -1, a possible number, does not mark a missing one."""
    if settings.target == "regression" and data.missing_label == "-1":
        raise UserError(
            "classifier.target=regression and data.missing_label=-1: -1 is a number, too: "
            "set data.missing_label to null, or to the mark of a missing number"
        )


def _check_category_only(settings: ClassifierConfig) -> None:
    """Check that class weights, label smoothing and pseudo-labels are set for single labels only."""
    if settings.target != "category" and settings.pseudo_labels is not None:
        raise UserError(f"classifier.target={settings.target}: leave out pseudo_labels, which are single classes")
    if settings.target != "category" and (settings.label_smoothing or settings.class_weights is not None):
        raise UserError(f"classifier.target={settings.target}: leave out label_smoothing and class_weights")


def _check_regression_only(settings: ClassifierConfig) -> None:
    """Check that a range of predictions is set for numbers only."""
    if settings.y_range is not None and settings.target != "regression":
        raise UserError(
            f"classifier.y_range={settings.y_range} is for classifier.target=regression: set y_range=null, or that target"
        )


def _check_unlabelled(settings: ClassifierConfig) -> None:
    """Check that the losses of classifier.unlabelled can be computed, and that its documents have one."""
    unlabelled = settings.unlabelled
    if settings.target == "regression" and (unlabelled.entropy_weight or unlabelled.virtual_adversarial_weight):
        raise UserError(
            "classifier.unlabelled: entropy_weight and virtual_adversarial_weight are for probabilities: a regression has "
            "adversarial_weight only"
        )
    if unlabelled.entropy_weight and unlabelled.batch_size is None:
        raise UserError(
            "classifier.unlabelled.entropy_weight is of unlabelled documents: set classifier.unlabelled.batch_size, such "
            "as 32"
        )
    if unlabelled.batch_size is not None and not (unlabelled.entropy_weight or unlabelled.virtual_adversarial_weight):
        raise UserError(
            f"classifier.unlabelled.batch_size={unlabelled.batch_size}, but no loss reads unlabelled documents: set "
            f"entropy_weight or virtual_adversarial_weight above 0, or batch_size=null"
        )


def check_probabilities_only(settings: ClassifierConfig) -> None:
    """Raise UserError if a temperature or naive Bayes is set for numbers."""
    if settings.target != "regression":
        return
    if settings.temperature_scaling:
        raise UserError("classifier.temperature_scaling is for probabilities: leave it out of a regression")
    if settings.baseline_features == "naive_bayes":
        raise UserError("classifier.baseline_features=naive_bayes is for classes: set tfidf or lsa for a regression")


def _check_trackers(tracking: TrackingConfig) -> None:
    """Check tracking.trackers; their names and packages are checked when the run starts."""
    doubled = next((name for name in tracking.trackers if tracking.trackers.count(name) > 1), None)
    if doubled is not None:
        raise UserError(f"tracking.trackers names {doubled} twice: leave one out")
    if tracking.wandb_mode in ("online", "offline") and "wandb" not in tracking.trackers:
        raise UserError(
            f"tracking.wandb_mode={tracking.wandb_mode}, but tracking.trackers={tracking.trackers} is without wandb: "
            f"add it, or leave tracking.wandb_mode out"
        )
