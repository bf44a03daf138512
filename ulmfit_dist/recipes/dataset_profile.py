"""Profile of texts: source, columns, labels, language and tokens, from a path and what the user says of them.

What cannot be decided is an error of one line that names the option which decides it.
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
"""Documents, and labelled documents, below which nothing can be learned."""
MOST_UNREADABLE = 0.1
"""Share of documents that cannot be read above which a recipe that skips them is no answer."""


@dataclass(frozen=True)
class TextOptions:
    """Options that describe the texts.

    Attributes:
        text: columns of text; none: to be found.
        label: column of labels; `none`: there are none; None: to be found.
        target: `classifier.target`; None: to be found.
        lang: spaCy's code of the language; None: to be found.
        overrides: keys of the config, as `data.max_documents=1000`.
    """

    text: Sequence[str] = ()
    label: str | None = None
    target: str | None = None
    lang: str | None = None
    overrides: Sequence[str] = ()

    @property
    def given(self) -> list[str]:
        """Names of the keys that are set."""
        return [word.partition("=")[0] for word in self.overrides]


@dataclass
class Profile:
    """Profile of the texts.

    Attributes:
        card: for the user.
        config: the sections `data` and `tokenizer`, and `classifier.target`.
        reasons: by dotted key, why it has its value.
        survey, tokens: counts that a recipe is sized by.
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
        for word in self.overrides:
            section, _, key = word.partition("=")[0].partition(".")
            if not key:
                config = replace(config, **{section: getattr(given, section)})
            else:
                name = key.partition(".")[0]
                part = replace(getattr(config, section), **{name: getattr(getattr(given, section), name)})
                config = replace(config, **{section: part})
        return config


def profile_texts(path: str, options: TextOptions, has_gpu: bool = False) -> Profile:
    """Look at the texts at a path.

    Args:
        path: a folder, a CSV, TSV, JSON or Parquet file, a folder of such files, or `hub:NAME`.
        has_gpu: whether they are for a model on a GPU, which may have a larger vocabulary.

    Raises:
        UserError: they cannot be read, or what they are cannot be decided.
    """
    base = load_config(None, [f"data.path={path.removeprefix(HUB)}", *options.overrides])
    options = _with_said(options, base)
    found = find_input(path, base.data, [key.removeprefix("data.") for key in options.given if key.startswith("data.")])
    columns, choice = _choose(found, path, options)
    data = with_columns(found.data, choice, options.given)
    data, survey, skipped = _survey(data)
    has_lists = any(column.name == choice.label and column.content == "list" for column in columns)
    if found.data.source == "folder" and choice.label is not None and len(survey.labels) < 2:
        choice = replace(choice, label=None, label_reason="no sub-folders of several classes: a language model alone")
        data = replace(data, label_col=None)
    meaning = _read_labels(survey, choice, path, options, has_lists)
    _check_enough(survey, meaning, path)
    data, survey, why_test = cut_test(data, base.data, survey, meaning, options.given)
    language = _language(survey, path, options)
    tokenizer, tokenizer_reason = tokenizer_for(language.code, options.lang is not None)
    kind = base.tokenizer.type if "tokenizer.type" in options.given else tokenizer.type
    tokenizer = with_vocabulary(replace(base.tokenizer, type=kind, lang=tokenizer.lang), survey, has_gpu, options.given)
    tokens = sample_tokens(survey.sample, tokenizer)
    data = with_labels(data, base.data, meaning, survey, options.given)
    why_splits = splits_reason(data, choice, survey)
    encoding = [f"encoding {data.encoding}: {found.reasons['encoding']}"] if "encoding" in found.reasons else []
    notices = [*found.notices, *encoding, *choice.notices, *skipped, *why_test]
    findings = Findings(columns, choice, survey, meaning, language, tokens)
    card = make_card(path, data.source, findings, why_splits, notices)
    config = replace(base, data=data, tokenizer=tokenizer)
    reasons = reasons_of(found, choice, meaning, language, tokenizer_reason, card)
    if meaning is not None:
        seed = choose_seed(survey, meaning, data.valid_pct, data.on_duplicates == "drop", base.seed, path)
        if seed != base.seed:
            reasons["seed"] = f"the cut by {base.seed} would validate on a rare class that is not trained on"
            config = replace(config, seed=seed)
        config = replace(config, classifier=replace(base.classifier, target=meaning.target))
    return Profile(card, config, reasons, survey, tokens, options.overrides)


def _with_said(options: TextOptions, base: Config) -> TextOptions:
    """The options, with what keys say in their place."""
    given = options.given
    if "data.text_col" in given and not options.text:
        options = replace(options, text=tuple(base.data.text_col))
    if "data.label_col" in given and options.label is None:
        options = replace(options, label="none" if base.data.label_col is None else base.data.label_col)
    if "classifier.target" in given and options.target is None:
        options = replace(options, target=base.classifier.target)
    return options


def _choose(found: Input, path: str, options: TextOptions) -> tuple[list[Column], Choice]:
    if found.data.source == "folder":
        if options.text or options.label not in (None, "none"):
            raise UserError(f"{path}: a folder of texts has no columns: leave --text and --label out")
        if options.label == "none":
            return [], Choice([], "a document is a .txt file", None, "set by --label none")
        return [], Choice([], "a document is a .txt file", "label", "the folder that a file lies in")
    if not found.rows:
        raise UserError(f"{path}: no row that can be read")
    columns = [
        profile_column(name, [row.get(name) for row in found.rows], found.types.get(name, "string"))
        for name in found.columns
    ]
    return columns, choose_columns(columns, found.rows, path, options.text, options.label, file_columns(found))


def _survey(data: DataConfig) -> tuple[DataConfig, Survey, list[str]]:
    """Open and count the source; documents that cannot be read are skipped, if they are few."""
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
        return skipping, survey, [*source.notices, f"first of the documents that cannot be read: {error}"]


def _read_labels(survey: Survey, choice: Choice, path: str, options: TextOptions, has_lists: bool) -> LabelMeaning | None:
    if choice.label is None:
        return None
    if not survey.labels:
        if choice.label_reason.startswith("set by --label"):
            raise UserError(f"--label {choice.label}: {path}: no document has a label")
        return None
    if len(survey.labels) == 1 and options.target in (None, "category") and not has_lists:
        (only,) = survey.labels
        raise UserError(
            f"{path}: all documents have the same label, {only!r}, in column {choice.label}: give another by --label COL, "
            f"or --label none for a language model alone"
        )
    column = choice.label if choice.text else "of folders"
    return read_labels(survey.labels, column, path, options.target, has_lists)


def _check_enough(survey: Survey, meaning: LabelMeaning | None, path: str) -> None:
    """Raise UserError for texts that are too few."""
    number = sum(len(split.label_of) for split in survey.splits.values())
    if number < FEWEST_DOCUMENTS:
        raise UserError(f"{path}: {number} documents with words, too few to learn from: give at least {FEWEST_DOCUMENTS}")
    labels = survey.splits["train"].labels
    labelled = sum(labels.values()) - (labels[meaning.missing] if meaning is not None and meaning.missing is not None else 0)
    if meaning is not None and labelled < FEWEST_DOCUMENTS:
        raise UserError(
            f"{path}: {labelled} labelled documents to train on, too few to learn from: label at least {FEWEST_DOCUMENTS}, "
            f"or give --label none for a language model alone"
        )


def _language(survey: Survey, path: str, options: TextOptions) -> Language:
    if options.lang is not None:
        return Language(options.lang, 1.0, "as --lang says: given")
    lang = next((word.partition("=")[2] for word in options.overrides if word.startswith("tokenizer.lang=")), None)
    if lang is not None:
        return Language(lang, 1.0, "as tokenizer.lang says: given")
    return detect_language(survey.sample, path)
