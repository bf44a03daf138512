"""The keys of `data` and `tokenizer` that follow from what texts are, and the reasons that a recipe gives for them."""

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
"""Training documents below which a fifth, not a tenth, is cut off to validate on: a figure of fewer tells little."""
FEW_BESIDE_TEST = 1000
"""The same where a test split gives the figure, and valid only selects."""
MOST_EQUAL = 0.5
"""Share of equal texts from which on they are not left out: hardly any would remain."""
MANY_CHARACTERS = 80_000_000
"""Characters of all texts from which on a vocabulary is larger."""
CHARACTERS_OF_A_PIECE = 40
"""Characters of text for each piece that SentencePiece learns, where texts are few."""


def with_columns(data: DataConfig, choice: Choice, given: Sequence[str]) -> DataConfig:
    """Return the section with the columns, for a survey: no label means none yet."""
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
    """Return the section with how labels are read, what is cut off to validate on, and what becomes of equal texts."""
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
    """Return the section with a vocabulary for so many texts: on a CPU most of a step's time grows with it."""
    if config.type == "sentencepiece":
        if {"tokenizer.sp_vocab_size", "tokenizer.sp_model"} & set(given):
            return config
        fewest = len(set().union(*survey.sample)) * 3 // 2 + 64  # all characters must be among them
        wanted = min(20_000 if has_gpu else 8_000, int(survey.characters / CHARACTERS_OF_A_PIECE))
        return replace(config, sp_vocab_size=max(fewest, wanted) // 8 * 8)
    if "tokenizer.max_vocab" in given:
        return config
    large = survey.characters > MANY_CHARACTERS
    return replace(config, max_vocab=(60_000 if large else 20_000) if has_gpu else (15_000 if large else 8_000))


def splits_reason(data: DataConfig, choice: Choice, survey: Survey) -> str:
    """Return how the splits of a card were found."""
    if data.test_pct is not None:
        rest = "" if "valid" in survey.splits else f", and {data.valid_pct:.0%} of the rest to validate on"
        return f"{data.test_pct:.0%} of train is cut off to test on{rest}"
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


def reasons_of(
    found: Input, choice: Choice, meaning: LabelMeaning | None, language: Language, tokenizer_reason: str, card: DataCard
) -> dict[str, str]:
    """Return why keys have their values, by dotted key."""
    share = "" if language.share == 1 else f", {language.share:.0%}"
    reasons = {f"data.{key}": reason for key, reason in found.reasons.items()}
    reasons |= {
        "data.text_col": choice.text_reason,
        "data.file_col": choice.text_reason,
        "data.label_col": choice.label_reason,
        "data.valid_col": "true for the rows to validate on",
        "data.on_error": f"{card.unreadable:,} of {card.documents:,} documents cannot be read",
        "data.valid_pct": "cut off by seed to validate on",
        "data.test_pct": "cut off as the test split, the same for every seed: it chooses nothing, and gives the figure",
        "data.on_duplicates": "equal texts: none is learned from that is measured on",
        "tokenizer.type": tokenizer_reason,
        "tokenizer.sp_vocab_size": "pieces of words to learn",
        "tokenizer.lang": tokenizer_reason or f"{language.how}{share}",
    }
    if meaning is not None:
        reasons |= {
            "classifier.target": meaning.reason,
            "data.label_delim": "between the labels of a document",
            "data.missing_label": meaning.missing_reason or "the label that means none",
        }
    return reasons
