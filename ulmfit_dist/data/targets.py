"""Classifier targets: one of several classes, any number of them, or a number.

They correspond to fastai's `CategoryBlock`, `MultiCategoryBlock` and `RegressionBlock`. A token store keeps labels as
strings, each distinct one once, and they are parsed here when a classifier is trained. So one store serves every
`classifier.target`; the trade-off is that a bad label is found at training, not at preparation.

L: distinct labels in the store, C: classes, b: documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ulmfit_dist.config.schema import ClassifierConfig
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore
from ulmfit_dist.errors import UserError


@dataclass(frozen=True)
class Targets:
    """Targets of a store's labels.

    Attributes:
        kind: category, multicategory or regression.
        names: class names by output; empty for a regression.
        values: target of each label of the store: int64 [L], uint8 [L, C] of zeros and ones, or float32 [L].
    """

    kind: str
    names: list[str]
    values: Tensor

    @property
    def num_outputs(self) -> int:
        """Outputs of the network per document."""
        return num_outputs(self.kind, self.names)

    def of(self, labels_b: np.ndarray) -> Tensor:
        """Return the targets of documents, given their labels: int64 [b], float32 [b, C] or float32 [b]."""
        values_b = self.values[torch.from_numpy(labels_b.astype(np.int64))]
        return values_b.float() if self.kind == "multicategory" else values_b

    def documents_of_classes(self, labels_b: np.ndarray) -> np.ndarray:
        """Return the number of documents of each class, int64 [C]."""
        documents_L = np.bincount(labels_b, minlength=len(self.values))
        return documents_L if self.kind == "category" else documents_L @ self.values.numpy()


def num_outputs(kind: str, names: Sequence[str]) -> int:
    """Return the outputs of a classifier per document: one per class, or 1 for a regression."""
    return 1 if kind == "regression" else len(names)


def read_targets(store: TokenStore, settings: ClassifierConfig, delimiter: str) -> Targets:
    """Return the targets of a store's labels for `classifier.target`.

    Args:
        delimiter: separator of a document's classes, for multicategory.

    Raises:
        UserError: regression with a label that is not a number, or outside `classifier.y_range`.
    """
    labels = store.label_names
    if settings.target == "category":
        return one_class_each(labels)
    if settings.target == "multicategory":
        return _multicategory([classes_of_label(label, delimiter) for label in labels])
    return Targets("regression", [], torch.tensor([_number(label, settings) for label in labels], dtype=torch.float32))


def one_class_each(labels: list[str]) -> Targets:
    """Return targets in which each label is a class."""
    return Targets("category", labels, torch.arange(len(labels)))


def check_targets(
    targets: Targets, train_b: np.ndarray, valid_b: np.ndarray, test_b: np.ndarray | None = None, advice: str = ""
) -> None:
    """Check that a classifier can be trained on these labels.

    Args:
        train_b, valid_b, test_b: labels of the training, validation and test documents, by index in the store; None: no
            test split.
        advice: further advice for the message about a single class.

    Raises:
        UserError: no labelled document, a class without training documents, or fewer than two classes.
    """
    if not (train_b != NO_LABEL).any():
        raise UserError("no labelled document to train the classifier on: set data.label_col, or run 'lm' or 'pretrain'")
    if not (valid_b != NO_LABEL).any():
        raise UserError(
            "no labelled document to validate the classifier on: check the labels of the valid split, or, if the split is "
            "random, raise data.valid_pct or change seed"
        )
    if targets.kind == "regression":
        return
    train_C, valid_C = targets.documents_of_classes(train_b), targets.documents_of_classes(valid_b)
    for name, in_train, in_valid in zip(targets.names, train_C, valid_C, strict=True):
        if in_valid > 0 and in_train == 0:
            raise UserError(
                f"label {name!r} is in validation only ({in_valid} documents): add training documents of that class, "
                f"remove it, or, if the split is random and the class has several, change seed or data.valid_pct"
            )
    test_C = targets.documents_of_classes(test_b) if test_b is not None else np.zeros_like(train_C)
    for name, in_train, in_test in zip(targets.names, train_C, test_C, strict=True):
        if in_test > 0 and in_train == 0:
            raise UserError(
                f"label {name!r} is in the test split only ({in_test} documents): add training documents of that class, "
                f"or remove it from the test split"
            )
    has_all = len(targets.names) == 1 and train_C[0] == len(train_b)  # of several classes, none may be the answer
    if np.count_nonzero(train_C) < 2 if targets.kind == "category" else has_all:
        only = targets.names[int(np.argmax(train_C))]
        raise UserError(
            f"a single class, {only!r}: a classifier needs at least two: check data.label_col and the class folders{advice}"
        )
    if not targets.names:
        raise UserError("no document has a class: check data.label_col and data.label_delim")


def _multicategory(classes_L: list[list[str]]) -> Targets:
    names = sorted({name for classes in classes_L for name in classes})
    numbers = {name: i for i, name in enumerate(names)}
    values = torch.zeros(len(classes_L), len(names), dtype=torch.uint8)
    for label, classes in enumerate(classes_L):
        values[label, [numbers[name] for name in classes]] = 1
    return Targets("multicategory", names, values)


def classes_of_label(label: str, delimiter: str) -> list[str]:
    """Return the class names of a multicategory label."""
    return [name for part in label.split(delimiter) if (name := part.strip())]


def _number(label: str, settings: ClassifierConfig) -> float:
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"label {label!r} is not a number, but classifier.target=regression: check data.label_col")
    low, high = settings.y_range or (value, value)
    if not low <= value <= high:
        raise UserError(f"label {label} is outside classifier.y_range=[{low:g}, {high:g}]: widen the range, or remove it")
    return value
