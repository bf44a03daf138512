"""Profile of texts: source, columns, labels, language and tokens, detected from a path and user-given options.

Nothing ambiguous is guessed: an ambiguity raises a UserError that names the option which resolves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config, DataConfig
from ulmfit_dist.data.profile.card import DataCard, Findings, make_card
from ulmfit_dist.data.profile.columns import Choice, Column, choose_columns, profile_column
from ulmfit_dist.data.profile.cut import choose_seed, cut_test
from ulmfit_dist.data.profile.inputs import HUB, Input, file_columns, find_input
from ulmfit_dist.data.profile.labels import LabelMeaning, read_labels
from ulmfit_dist.data.profile.language import Language, detect_language, tokenizer_for
from ulmfit_dist.data.profile.survey import Survey, survey_source
from ulmfit_dist.data.profile.tokens import TokenSample, sample_tokens
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.errors import UserError
from ulmfit_dist.recipes.data_config import reasons_of, splits_reason, with_columns, with_labels, with_vocabulary

FEWEST_DOCUMENTS = 20
"""Minimum number of documents, and of labelled documents."""
MOST_UNREADABLE = 0.1
"""Maximum share of unreadable documents that a recipe skips."""


@dataclass(frozen=True)
class TextOptions:
    """Options that describe the texts.

    Attributes:
        text: columns of text; empty: detected.
        label: column of labels; `none`: no labels; None: detected.
        target: `classifier.target`; None: detected.
        lang: spaCy's code of the language; None: detected.
        overrides: config overrides, such as `data.max_documents=1000`.
    """

    text: Sequence[str] = ()
    label: str | None = None
    target: str | None = None
    lang: str | None = None
    overrides: Sequence[str] = ()

    @property
    def given(self) -> list[str]:
        """Names of the keys that are set."""
        return [*self.values]

    @property
    def values(self) -> dict[str, str]:
        """Values of the keys that are set, as YAML."""
        return {key: value for key, _, value in (override.partition("=") for override in self.overrides)}


@dataclass
class Profile:
    """Profile of the texts.

    Attributes:
        card: data card that the user sees.
        config: the sections `data` and `tokenizer`, and `classifier.target`.
        reasons: reason for a value, by dotted key.
        survey, tokens: counts that determine the size of a recipe.
        overrides: keys that the user has set.
    """

    card: DataCard
    config: Config
    reasons: dict[str, str]
    survey: Survey
    tokens: TokenSample
    overrides: Sequence[str]

    @property
    def max_vocab(self) -> int:
        """The largest vocabulary of the config."""
        tokenizer = self.config.tokenizer
        return (
            tokenizer.max_vocab
            if tokenizer.sp_vocab_size is None
            else min(tokenizer.max_vocab, tokenizer.sp_vocab_size + 16)
        )

    def with_overrides(self, config: Config) -> Config:
        """Return a config with the values of the keys that the user has set."""
        if not self.overrides:
            return config
        given = load_config(None, [f"data.path={config.data.path}", *self.overrides])
        for override in self.overrides:
            section, _, key = override.partition("=")[0].partition(".")
            if not key:
                config = replace(config, **{section: getattr(given, section)})
            else:
                name = key.partition(".")[0]
                part = replace(getattr(config, section), **{name: getattr(getattr(given, section), name)})
                config = replace(config, **{section: part})
        return config


def profile_texts(path: str, options: TextOptions, has_gpu: bool = False) -> Profile:
    """Profile the texts at a path.

    Args:
        path: a folder, a CSV, TSV, JSON or Parquet file, a folder of such files, or `hub:NAME`.
        has_gpu: True if the model is trained on a GPU, which allows a larger vocabulary.

    Raises:
        UserError: the texts cannot be read, or an option is needed to decide what they are.
    """
    base = load_config(None, [f"data.path={path.removeprefix(HUB)}", *options.overrides])
    options = _with_overrides(options, base)
    inputs = find_input(path, base.data, [key.removeprefix("data.") for key in options.given if key.startswith("data.")])
    columns, choice = _choose(inputs, path, options)
    data = with_columns(inputs.data, choice, options.given)
    data, survey, skipped = _survey(data)
    has_lists = any(column.name == choice.label and column.content == "list" for column in columns)
    if inputs.data.source == "folder" and choice.label is not None and len(survey.labels) < 2:
        choice = replace(choice, label=None, label_reason="no sub-folders of several classes: language model only")
        data = replace(data, label_col=None)
    meaning = _read_labels(survey, choice, path, options, has_lists)
    _check_enough(survey, meaning, path)
    data, survey, test_notices = cut_test(data, base.data, survey, meaning, options.given)
    language = _language(survey, path, options)
    tokenizer, tokenizer_reason = tokenizer_for(language.code, options.lang is not None)
    tokenizer_type = base.tokenizer.type if "tokenizer.type" in options.given else tokenizer.type
    tokenizer = replace(base.tokenizer, type=tokenizer_type, lang=tokenizer.lang)
    tokenizer = with_vocabulary(tokenizer, survey, has_gpu, options.given)
    tokens = sample_tokens(survey.sample, tokenizer)
    data = with_labels(data, base.data, meaning, survey, options.given)
    reason_for_splits = splits_reason(data, choice, survey)
    encoding = [f"encoding {data.encoding}: {inputs.reasons['encoding']}"] if "encoding" in inputs.reasons else []
    notices = [*inputs.notices, *encoding, *choice.notices, *skipped, *test_notices]
    findings = Findings(columns, choice, survey, meaning, language, tokens)
    card = make_card(path, data.source, findings, reason_for_splits, notices)
    config = replace(base, data=data, tokenizer=tokenizer)
    reasons = reasons_of(inputs, choice, meaning, language, tokenizer_reason, card)
    if meaning is not None:
        seed = choose_seed(survey, meaning, data.valid_pct, data.on_duplicates == "drop", base.seed, path)
        if seed != base.seed:
            reasons["seed"] = f"seed {base.seed} would put all documents of a rare class into valid"
            config = replace(config, seed=seed)
        config = replace(config, classifier=replace(base.classifier, target=meaning.target))
    return Profile(card, config, reasons, survey, tokens, options.overrides)


def _with_overrides(options: TextOptions, base: Config) -> TextOptions:
    """Return the options with the values of equivalent config overrides."""
    given = options.given
    if "data.text_col" in given and not options.text:
        options = replace(options, text=tuple(base.data.text_col))
    if "data.label_col" in given and options.label is None:
        options = replace(options, label="none" if base.data.label_col is None else base.data.label_col)
    if "classifier.target" in given and options.target is None:
        options = replace(options, target=base.classifier.target)
    return options


def _choose(inputs: Input, path: str, options: TextOptions) -> tuple[list[Column], Choice]:
    if inputs.data.source == "folder":
        if options.text or options.label not in (None, "none"):
            raise UserError(f"{path}: a folder of texts has no columns: leave --text and --label out")
        if options.label == "none":
            return [], Choice([], "a document is a .txt file", None, "set by --label none")
        return [], Choice([], "a document is a .txt file", "label", "the folder of the file")
    if not inputs.rows:
        raise UserError(f"{path}: no row can be read: check data.encoding and the file format")
    columns = [
        profile_column(name, [row.get(name) for row in inputs.rows], inputs.types.get(name, "string"))
        for name in inputs.columns
    ]
    return columns, choose_columns(columns, inputs.rows, path, options.text, options.label, file_columns(inputs))


def _survey(data: DataConfig) -> tuple[DataConfig, Survey, list[str]]:
    """Open and count the source; a small share of unreadable documents is skipped."""
    try:
        source = open_source(data)
        return data, survey_source(source), source.notices
    except UserError as error:
        if data.on_error != "strict":
            raise
        skipping = replace(data, on_error="skip")
        try:
            source = open_source(skipping)
            survey = survey_source(source)
        except UserError:
            raise error from None
        num_unreadable = sum(part.num_unreadable for part in survey.splits.values())
        if not 0 < num_unreadable <= MOST_UNREADABLE * sum(part.num_read for part in survey.splits.values()):
            raise error from None
        return skipping, survey, [*source.notices, f"first unreadable document: {error}"]


def _read_labels(survey: Survey, choice: Choice, path: str, options: TextOptions, has_lists: bool) -> LabelMeaning | None:
    if choice.label is None:
        return None
    if not survey.labels:
        if options.label is not None:
            raise UserError(f"--label {choice.label}: {path}: no document has a label")
        return None
    if len(survey.labels) == 1 and options.target in (None, "category") and not has_lists:
        (only,) = survey.labels
        raise UserError(
            f"{path}: all documents have the same label, {only!r}, in column {choice.label}: give another column by --label "
            f"COL, or --label none for a language model only"
        )
    column = choice.label if choice.text else "of folders"
    return read_labels(survey.labels, column, path, options.target, has_lists)


def _check_enough(survey: Survey, meaning: LabelMeaning | None, path: str) -> None:
    """Raise UserError if there are too few documents."""
    num_documents = sum(len(split.label_of) for split in survey.splits.values())
    if num_documents < FEWEST_DOCUMENTS:
        raise UserError(f"{path}: {num_documents} non-empty documents are too few: give at least {FEWEST_DOCUMENTS}")
    labels = survey.splits["train"].labels
    labelled = sum(labels.values()) - (labels[meaning.missing] if meaning is not None and meaning.missing is not None else 0)
    if meaning is not None and labelled < FEWEST_DOCUMENTS:
        raise UserError(
            f"{path}: {labelled} labelled training documents are too few: label at least {FEWEST_DOCUMENTS}, or give "
            f"--label none for a language model only"
        )


def _language(survey: Survey, path: str, options: TextOptions) -> Language:
    if options.lang is not None:
        return Language(options.lang, 1.0, "set by --lang")
    if (lang := options.values.get("tokenizer.lang")) is not None:
        return Language(lang, 1.0, "set by tokenizer.lang")
    return detect_language(survey.sample, path)
