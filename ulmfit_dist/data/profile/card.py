"""Data card: content of a source, the columns and labels that the config uses, and the reasons.

The card holds numbers and reasons, not only conclusions, so that a wrong guess is seen before training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ulmfit_dist.data.profile.columns import Choice, Column, shortened
from ulmfit_dist.data.profile.labels import RARE, LabelMeaning, count_classes
from ulmfit_dist.data.profile.language import Language
from ulmfit_dist.data.profile.survey import Survey
from ulmfit_dist.data.profile.tokens import TokenSample

CLASSES_SHOWN = 15
"""Maximum number of classes in the printed card."""
COLUMNS_SHOWN = 30
"""Maximum number of columns in the printed card."""
UNKNOWN_HIGH = 0.1
"""Fraction of unknown tokens above which the card has a warning."""


@dataclass
class Findings:
    """Results of profiling a source.

    Attributes:
        columns: columns of the table; empty for a folder of texts.
        choice: text and label columns.
        survey: counts of documents.
        meaning: meaning of the labels; None if there are no labels.
        language: language of the texts.
        tokens: tokens of a sample.
    """

    columns: list[Column]
    choice: Choice
    survey: Survey
    meaning: LabelMeaning | None
    language: Language
    tokens: TokenSample


@dataclass
class DataCard:
    """Content of a source.

    Attributes:
        path, source: path of the source, and `data.source`.
        documents: number of documents; `splits` by split, and the reason for the splits.
        counted: documents that were read for the counts below.
        columns: name, type and example of each.
        text, label: columns that are read, with reasons; a label of None: no labels.
        target: `classifier.target`, with its reason; None: no labels.
        classes: documents by class, largest first; empty for a regression.
        rare: classes with fewer than five documents.
        numbers: lowest, mean and highest label of a regression.
        unlabelled, empty, unreadable: numbers of documents.
        words: median, 95th percentile and maximum length in words between spaces; 1 in languages without spaces.
        tokens: the same in tokens, of a sample, and the expected number of tokens of all documents.
        equal_texts: documents whose text occurs before, within splits and across splits.
        language: code, fraction of the samples and method of detection.
        unknown: expected fraction of unknown tokens.
        notices: further messages.
    """

    path: str
    source: str
    documents: int
    splits: dict[str, int]
    splits_reason: str
    counted: int
    columns: list[dict[str, str]]
    text: list[str]
    text_reason: str
    label: str | None
    label_reason: str
    target: str | None
    target_reason: str
    classes: dict[str, int]
    rare: list[str]
    numbers: dict[str, float]
    unlabelled: int
    empty: int
    unreadable: int
    words: dict[str, int]
    tokens: dict[str, int]
    equal_texts: dict[str, int]
    language: dict[str, Any]
    unknown: float
    notices: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the card as JSON-able values."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(describe_card(self))


def make_card(path: str, source: str, findings: Findings, splits_reason: str, notices: list[str]) -> DataCard:
    """Return the data card of a source.

    Args:
        path, source: path of the source, and `data.source`.
        splits_reason: reason for the splits, as a phrase.
        notices: further messages.
    """
    choice, survey, meaning = findings.choice, findings.survey, findings.meaning
    language, tokens = findings.language, findings.tokens
    parts = survey.splits.values()
    classes = count_classes(survey.labels, meaning) if meaning is not None else {}
    words = np.concatenate([part.words for part in parts])
    missing = survey.labels[meaning.missing] if meaning is not None and meaning.missing is not None else 0
    unlabelled = sum(part.num_unlabelled for name, part in survey.splits.items() if name != "test")
    return DataCard(
        path=path,
        source=source,
        documents=survey.num_documents,
        splits={name: part.num_documents for name, part in survey.splits.items()},
        splits_reason=splits_reason,
        counted=sum(part.num_read for part in parts),
        columns=[{"name": column.name, "type": _type(column), "example": column.example} for column in findings.columns],
        text=choice.text,
        text_reason=choice.text_reason,
        label=choice.label,
        label_reason=choice.label_reason,
        target=meaning.target if meaning is not None else None,
        target_reason=meaning.reason if meaning is not None else choice.label_reason,
        classes=dict(classes),
        rare=[name for name, number in classes.items() if number < RARE],
        numbers=_numbers(survey, meaning),
        unlabelled=unlabelled + missing if choice.label is not None else 0,
        empty=sum(part.num_empty for part in parts),
        unreadable=sum(part.num_unreadable for part in parts),
        words=percentiles(words),
        tokens={**percentiles(tokens.lengths), "all": int(survey.characters * tokens.per_character)},
        equal_texts=survey.num_equal(),
        language={"code": language.code, "share": round(language.share, 3), "how": language.how},
        unknown=round(tokens.unknown, 4),
        notices=notices,
    )


def describe_card(card: DataCard) -> Iterator[str]:
    """Yield the lines of a card."""
    counted = "" if card.counted == card.documents else f" (figures below are of {card.counted:,} of them, evenly spaced)"
    yield f"{card.path}: {card.documents:,} documents, data.source={card.source}{counted}"
    yield _row("splits", f"{', '.join(f'{name} {number:,}' for name, number in card.splits.items())}: {card.splits_reason}")
    for number, column in enumerate(card.columns[:COLUMNS_SHOWN]):
        yield _row("" if number else "columns", f"{column['name']} ({column['type']}): {column['example']}")
    if len(card.columns) > COLUMNS_SHOWN:
        yield _row("", f"and {len(card.columns) - COLUMNS_SHOWN} more")
    yield _row("text", f"{', '.join(card.text) or 'the files'}: {card.text_reason}")
    label = "folders" if card.label is not None and not card.text else card.label or "none"
    yield _row("label", f"{label}: {card.label_reason}")
    if card.target is not None:
        yield _row("target", f"{card.target}: {card.target_reason}")
    yield from _describe_labels(card)
    if card.words["p95"] > 1:
        yield _row("words", _lengths(card.words))
    yield _row("tokens", f"{_lengths(card.tokens)}; {card.tokens['all']:,} in all (from a sample)")
    if card.empty or card.unreadable:
        yield _row("left out", f"{card.empty:,} without a word, {card.unreadable:,} that cannot be read")
    if card.equal_texts:
        yield _row("equal texts", ", ".join(f"{number:,} {where}" for where, number in card.equal_texts.items()))
    share = "" if card.language["share"] == 1 and "given" in card.language["how"] else f" ({card.language['share']:.0%})"
    yield _row("language", f"{card.language['code']}{share}, {card.language['how']}")
    advice = ": a wrong language or encoding, or too few texts" if card.unknown > UNKNOWN_HIGH else ""
    yield _row("unknown", f"{card.unknown:.1%} of the tokens in half of a sample are not in the other half{advice}")
    for notice in card.notices:
        yield _row("note", notice)


def percentiles(lengths: np.ndarray) -> dict[str, int]:
    """Return median, 95th percentile and maximum."""
    if not len(lengths):
        return {"median": 0, "p95": 0, "longest": 0}
    median, p95 = np.percentile(lengths, [50, 95])
    return {"median": round(float(median)), "p95": round(float(p95)), "longest": int(lengths.max())}


def _describe_labels(card: DataCard) -> Iterator[str]:
    if card.classes:
        names = list(card.classes)
        shown = ", ".join(f"{shortened(name, 30)} {card.classes[name]:,}" for name in names[:CLASSES_SHOWN])
        more = f", and {len(names) - CLASSES_SHOWN:,} more" if len(names) > CLASSES_SHOWN else ""
        yield _row("classes", f"{len(names):,}: {shown}{more}")
    if card.rare:
        shown = ", ".join(f"{shortened(name, 30)} {card.classes[name]}" for name in card.rare[:CLASSES_SHOWN])
        more = f", and {len(card.rare) - CLASSES_SHOWN:,} more" if len(card.rare) > CLASSES_SHOWN else ""
        yield _row("rare", f"{shown}{more}: too few documents to learn or to measure these classes")
    if card.numbers:
        low, mean, high = (card.numbers[key] for key in ("lowest", "mean", "highest"))
        yield _row("numbers", f"{low:g} to {high:g}, mean {mean:.4g}")
    if card.unlabelled:
        yield _row("unlabelled", f"{card.unlabelled:,}: used only for the language model")


def _numbers(survey: Survey, meaning: LabelMeaning | None) -> dict[str, float]:
    if meaning is None or meaning.target != "regression":
        return {}
    values = np.array([float(label) for label in survey.labels])
    weights = np.array(list(survey.labels.values()))
    return {
        "lowest": float(values.min()),
        "mean": float(np.average(values, weights=weights)),
        "highest": float(values.max()),
    }


def _type(column: Column) -> str:
    names = {"whole": "whole numbers", "number": "numbers", "flag": "true and false", "list": "lists"}
    return f"{column.type}, {names[column.content]}" if column.type == "string" and column.content in names else column.type


def _lengths(lengths: dict[str, int]) -> str:
    return f"median {lengths['median']:,}, 95 % up to {lengths['p95']:,}, longest {lengths['longest']:,}"


def _row(name: str, text: str) -> str:
    return f"  {name:<12}{text}"
