"""What texts are: source, columns, labels, language and tokens, from a path and what the user says of them.

What cannot be decided is an error of one line that names the option which decides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ulmfit_dist.compose import load_config
from ulmfit_dist.config import Config, DataConfig, TokenizerConfig
from ulmfit_dist.data.profile.card import DataCard, make_card
from ulmfit_dist.data.profile.columns import Choice, Column, choose_columns, profile_column
from ulmfit_dist.data.profile.cut import choose_seed
from ulmfit_dist.data.profile.inputs import HUB, Input, file_columns, find_input
from ulmfit_dist.data.profile.labels import LabelMeaning, read_labels
from ulmfit_dist.data.profile.language import Language, detect_language, tokenizer_for
from ulmfit_dist.data.profile.survey import Survey, survey_source
from ulmfit_dist.data.profile.tokens import TokenSample, sample_tokens
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.errors import UserError

FEWEST_DOCUMENTS = 20
"""Documents, and labelled documents, below which nothing can be learned."""
FEW_DOCUMENTS = 5000
"""Training documents below which a fifth, not a tenth, is cut off to validate on: a figure of fewer tells little."""
MOST_EQUAL = 0.5
"""Share of equal texts from which on they are not left out: hardly any would remain."""
MANY_CHARACTERS = 80_000_000
"""Characters of all texts from which on a vocabulary is larger."""
CHARACTERS_OF_A_PIECE = 40
"""Characters of text for each piece that SentencePiece learns, where texts are few."""
MOST_UNREADABLE = 0.1
"""Share of documents that cannot be read above which a recipe that skips them is no answer."""


@dataclass(frozen=True)
class TextOptions:
    """What the user says of the texts.

    Attributes:
        text: columns of text; none: to be found.
        label: column of labels; `none`: there are none; None: to be found.
        target: `classifier.target`; None: to be found.
        lang: spaCy's code of the language; None: to be found.
        minutes: that `run` may take.
        overrides: keys of the config, as `data.limit=1000`.
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
    """What was found out about the texts.

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
        return tokenizer.max_vocab if tokenizer.pieces is None else min(tokenizer.max_vocab, tokenizer.pieces + 16)

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
    data = _with_columns(found.data, choice, options.given)
    data, survey, skipped = _survey(data)
    has_lists = any(column.name == choice.label and column.kind == "list" for column in columns)
    if found.data.source == "folder" and choice.label is not None and len(survey.labels) < 2:
        choice = replace(choice, label=None, label_reason="no sub-folders of several classes: a language model alone")
        data = replace(data, label=None)
    meaning = _read_labels(survey, choice, path, options, has_lists)
    _check_enough(survey, meaning, path)
    language = _language(survey, path, options)
    tokenizer, tokenizer_reason = tokenizer_for(language.code, options.lang is not None)
    tokenizer = _with_vocabulary(replace(base.tokenizer, kind=tokenizer.kind, lang=tokenizer.lang), survey, has_gpu, options)
    tokens = sample_tokens(survey.sample, tokenizer)
    data = _with_labels(data, base.data, meaning, survey, options)
    splits_reason = _splits_reason(path, found, data, choice, survey)
    encoding = [f"encoding {data.encoding}: {found.reasons['encoding']}"] if "encoding" in found.reasons else []
    notices = [*found.notices, *encoding, *choice.notices, *skipped]
    card = make_card(path, data.source, columns, choice, survey, meaning, language, tokens, splits_reason, notices)
    config = replace(base, data=data, tokenizer=tokenizer)
    reasons = _reasons(found, choice, meaning, language, tokenizer_reason, card)
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
    if "data.text" in given and not options.text:
        options = replace(options, text=tuple(base.data.text))
    if "data.label" in given and options.label is None:
        options = replace(options, label="none" if base.data.label is None else base.data.label)
    if "classifier.target" in given and options.target is None:
        options = replace(options, target=base.classifier.target)
    return options


def _choose(found: Input, path: str, options: TextOptions) -> tuple[list[Column], Choice]:
    if found.data.source == "folder":
        if options.text or options.label not in (None, "none"):
            raise UserError(f"{path}: a folder of texts has no columns: leave --text and --label out")
        if options.label == "none":
            return [], Choice([], "a document is a .txt file", None, "as --label none says")
        return [], Choice([], "a document is a .txt file", "label", "the folder that a file lies in")
    if not found.rows:
        raise UserError(f"{path}: no row that can be read")
    columns = [
        profile_column(name, [row.get(name) for row in found.rows], found.types.get(name, "string"))
        for name in found.columns
    ]
    return columns, choose_columns(columns, found.rows, path, options.text, options.label, file_columns(found))


def _with_columns(data: DataConfig, choice: Choice, given: Sequence[str]) -> DataConfig:
    """The section with the columns, for a survey: no label stands for none yet."""
    if data.source != "folder":
        if "data.text" not in given and choice.text_file is None:
            data = replace(data, text=choice.text)
        if "data.label" not in given:
            data = replace(data, label=choice.label)
        if "data.valid_col" not in given:
            data = replace(data, valid_col=choice.valid_col)
        if choice.text_file is not None:
            data = replace(data, text_file=choice.text_file)
    elif choice.label is None:
        data = replace(data, label=None)
    return replace(data, no_label=None)


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


def _with_labels(
    data: DataConfig, base: DataConfig, meaning: LabelMeaning | None, survey: Survey, options: TextOptions
) -> DataConfig:
    """The section with how labels are read, what is cut off to validate on, and what becomes of equal texts."""
    chosen: dict[str, Any] = {"no_label": base.no_label}
    if meaning is not None:
        chosen |= {"no_label": meaning.missing, "label_delim": meaning.delimiter}
    train = survey.splits["train"].num_documents
    if "valid" not in survey.splits and train < FEW_DOCUMENTS:
        chosen["valid_pct"] = 0.2
    num_equal = sum(survey.num_equal().values())
    if 0 < num_equal < MOST_EQUAL * survey.num_documents:
        chosen["on_duplicates"] = "drop"
    given = {key.removeprefix("data.") for key in options.given}
    return replace(data, **{key: getattr(base, key) if key in given else value for key, value in chosen.items()})


def _with_vocabulary(config: TokenizerConfig, survey: Survey, has_gpu: bool, options: TextOptions) -> TokenizerConfig:
    """The section with a vocabulary for so many texts: on a CPU most of a step's time grows with it."""
    if config.kind == "sentencepiece":
        if {"tokenizer.pieces", "tokenizer.model"} & set(options.given):
            return config
        fewest = len(set().union(*survey.sample)) * 3 // 2 + 64  # all characters must be among them
        wanted = min(20_000 if has_gpu else 8_000, int(survey.characters / CHARACTERS_OF_A_PIECE))
        return replace(config, pieces=max(fewest, wanted) // 8 * 8)
    if "tokenizer.max_vocab" in options.given:
        return config
    large = survey.characters > MANY_CHARACTERS
    return replace(config, max_vocab=(60_000 if large else 20_000) if has_gpu else (15_000 if large else 8_000))


def _read_labels(survey: Survey, choice: Choice, path: str, options: TextOptions, has_lists: bool) -> LabelMeaning | None:
    if choice.label is None:
        return None
    if not survey.labels:
        if choice.label_reason.startswith("as --label"):
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


def _splits_reason(path: str, found: Input, data: DataConfig, choice: Choice, survey: Survey) -> str:
    names = [name for name in survey.splits if name not in ("train", "unlabelled")]
    cut = "" if "valid" in names else f"; {data.valid_pct:.0%} of train is cut off to validate on"
    if data.splits:
        return f"as data.splits says{cut}"
    if choice.valid_col is not None:
        return f"by the column {choice.valid_col}"
    if len(survey.splits) == 1:
        return f"none is named{cut}"
    kind = {"folder": "sub-folders", "hub": "splits of the data set"}.get(data.source, "files beside each other")
    return f"{kind} of these names{cut}"


def _reasons(
    found: Input, choice: Choice, meaning: LabelMeaning | None, language: Language, tokenizer_reason: str, card: DataCard
) -> dict[str, str]:
    """Why keys have their values, by dotted key."""
    share = "" if language.share == 1 else f", {language.share:.0%}"
    reasons = {f"data.{key}": reason for key, reason in found.reasons.items()}
    reasons |= {
        "data.text": choice.text_reason,
        "data.text_file": choice.text_reason,
        "data.label": choice.label_reason,
        "data.valid_col": "true for the rows to validate on",
        "data.on_error": f"{card.unreadable:,} of {card.documents:,} documents cannot be read",
        "data.valid_pct": "cut off by seed to validate on"
        + (": few documents, so a fifth" if len(card.splits) == 1 and card.documents < FEW_DOCUMENTS else ""),
        "data.on_duplicates": "equal texts: none is learned from that is measured on",
        "tokenizer.kind": tokenizer_reason,
        "tokenizer.pieces": "pieces of words to learn",
        "tokenizer.lang": tokenizer_reason or f"{language.how}{share}",
    }
    if meaning is not None:
        reasons |= {
            "classifier.target": meaning.reason,
            "data.label_delim": "between the labels of a document",
            "data.no_label": meaning.missing_reason or "the label that means none",
        }
    return reasons
