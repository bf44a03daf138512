"""Sections `data` and `tokenizer` of a recipe, derived from the profile of the texts, with a reason for each key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ulmfit_dist.config.schema import DataConfig, TokenizerConfig
from ulmfit_dist.data.profile.card import DataCard
from ulmfit_dist.data.profile.columns import Choice
from ulmfit_dist.data.profile.inputs import Input
from ulmfit_dist.data.profile.labels import LabelMeaning
from ulmfit_dist.data.profile.language import Language
from ulmfit_dist.data.profile.survey import Survey

FEW_DOCUMENTS = 5000
"""Training documents below which the validation split is a fifth of them instead of a tenth."""
FEW_BESIDE_TEST = 1000
"""Training documents below which it is a fifth if there is a test split, so that valid only selects the model."""
MOST_EQUAL = 0.5
"""Share of duplicate texts above which they are kept: hardly any would remain."""
MANY_CHARACTERS = 80_000_000
"""Characters of all texts above which the vocabulary is larger."""
CHARACTERS_OF_A_PIECE = 40
"""Minimum characters of text per SentencePiece piece."""


def with_columns(data: DataConfig, choice: Choice, given: Sequence[str]) -> DataConfig:
    """Return the section with its columns, for the survey, which counts all labels (`missing_label` is null)."""
    if data.source != "folder":
        if "data.text_col" not in given and choice.file_col is None:
            data = replace(data, text_col=choice.text)
        if "data.label_col" not in given:
            data = replace(data, label_col=choice.label)
        if "data.valid_col" not in given:
            data = replace(data, valid_col=choice.valid_col)
        if choice.file_col is not None:
            data = replace(data, file_col=choice.file_col)
    elif choice.label is None:
        data = replace(data, label_col=None)
    return replace(data, missing_label=None)


def with_labels(
    data: DataConfig, base: DataConfig, meaning: LabelMeaning | None, survey: Survey, given: Sequence[str]
) -> DataConfig:
    """Return the section with the keys about labels, the validation split and duplicate texts."""
    chosen: dict[str, Any] = {"missing_label": base.missing_label}
    if meaning is not None:
        chosen |= {"missing_label": meaning.missing, "label_delim": meaning.delimiter}
    train = survey.splits["train"].num_documents
    few = FEW_DOCUMENTS if "test" not in survey.splits else FEW_BESIDE_TEST
    if "valid" not in survey.splits and train < few:
        chosen["valid_pct"] = 0.2
    num_equal = sum(survey.num_equal().values())
    if 0 < num_equal < MOST_EQUAL * survey.num_documents:
        chosen["on_duplicates"] = "drop"
    return replace(data, **{key: getattr(base, key) if f"data.{key}" in given else value for key, value in chosen.items()})


def with_vocabulary(config: TokenizerConfig, survey: Survey, has_gpu: bool, given: Sequence[str]) -> TokenizerConfig:
    """Return the section with a vocabulary size for these texts; smaller on a CPU, where the decoder dominates a step."""
    if config.type == "sentencepiece":
        if {"tokenizer.sp_vocab_size", "tokenizer.sp_model"} & set(given):
            return config
        smallest = len(set().union(*survey.sample)) * 3 // 2 + 64  # every character is a piece
        wanted = min(20_000 if has_gpu else 8_000, int(survey.characters / CHARACTERS_OF_A_PIECE))
        return replace(config, sp_vocab_size=max(smallest, wanted) // 8 * 8)
    if "tokenizer.max_vocab" in given:
        return config
    is_large = survey.characters > MANY_CHARACTERS
    return replace(config, max_vocab=(60_000 if is_large else 20_000) if has_gpu else (15_000 if is_large else 8_000))


def splits_reason(data: DataConfig, choice: Choice, survey: Survey) -> str:
    """Return the reason for the splits, as the data card shows it."""
    if data.test_pct is not None:
        rest = "" if "valid" in survey.splits else f", and {data.valid_pct:.0%} of the rest for valid"
        return f"{data.test_pct:.0%} of train is held out for test{rest}"
    names = [name for name in survey.splits if name not in ("train", "unlabelled")]
    cut = "" if "valid" in names else f"; {data.valid_pct:.0%} of train is held out for valid"
    if data.splits:
        return f"set by data.splits{cut}"
    if choice.valid_col is not None:
        return f"from the column {choice.valid_col}"
    if len(survey.splits) == 1:
        return f"no named split{cut}"
    origin = {"folder": "sub-folders", "hub": "splits of the data set"}.get(data.source, "files of the folder")
    return f"{origin} with these names{cut}"


def reasons_of(
    inputs: Input, choice: Choice, meaning: LabelMeaning | None, language: Language, tokenizer_reason: str, card: DataCard
) -> dict[str, str]:
    """Return the reasons for the values of keys, by dotted key."""
    share = "" if language.share == 1 else f", {language.share:.0%}"
    reasons = {f"data.{key}": reason for key, reason in inputs.reasons.items()}
    reasons |= {
        "data.text_col": choice.text_reason,
        "data.file_col": choice.text_reason,
        "data.label_col": choice.label_reason,
        "data.valid_col": "true for validation rows",
        "data.on_error": f"{card.unreadable:,} of {card.documents:,} documents cannot be read",
        "data.valid_pct": "share of train held out for valid, drawn by seed",
        "data.test_pct": "share of train held out for test, the same for every seed: used only for the reported figures",
        "data.on_duplicates": "duplicate texts: none is in both training and evaluation",
        "tokenizer.type": tokenizer_reason,
        "tokenizer.sp_vocab_size": "number of pieces to learn",
        "tokenizer.lang": tokenizer_reason or f"{language.how}{share}",
    }
    if meaning is not None:
        reasons |= {
            "classifier.target": meaning.reason,
            "data.label_delim": "delimiter between the labels of a document",
            "data.missing_label": meaning.missing_reason or "this label stands for a missing one",
        }
    return reasons
