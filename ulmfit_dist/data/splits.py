"""Who learns from which document.

The cut depends on the store, the seed and the shares in the config alone. The language model never sees a document that
the classifier is validated on, unless `lm.valid_pct` asks for the tutorial's way: all texts, labels left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ulmfit_dist.config import Config
from ulmfit_dist.data.store import NO_LABEL, TokenStore
from ulmfit_dist.errors import UserError
from ulmfit_dist.randomness import permutation


@dataclass(frozen=True)
class DocumentSplits:
    """Indices of documents in the store, int64, ascending."""

    lm_train: np.ndarray
    lm_valid: np.ndarray
    classifier_train: np.ndarray
    classifier_valid: np.ndarray


def split_documents(store: TokenStore, config: Config) -> DocumentSplits:
    """Cut the store by the config. Raises UserError where a side would be empty."""
    train, valid = store.split("train"), store.split("valid")
    if len(valid) == 0:
        train, valid = _cut(train, config.data.valid_pct, config.seed, "valid")
    if len(train) == 0 or len(valid) == 0:
        raise UserError(
            f"{len(train)} documents to train on and {len(valid)} to validate on: name a valid split in data.splits, "
            f"give more documents, or change data.valid_pct={config.data.valid_pct}"
        )
    lm_train, lm_valid = np.concatenate([train, store.split("unlabelled")]), valid
    if config.lm.valid_pct is not None:
        lm_train, lm_valid = _cut(np.arange(len(store)), config.lm.valid_pct, config.seed, "lm_valid")
    return DocumentSplits(
        lm_train=lm_train,
        lm_valid=lm_valid,
        classifier_train=train[store.labels[train] != NO_LABEL],
        classifier_valid=valid[store.labels[valid] != NO_LABEL],
    )


def check_labels(store: TokenStore, splits: DocumentSplits) -> None:
    """Refuse labels that no classifier can be trained on. Raises UserError."""
    train = np.bincount(store.labels[splits.classifier_train], minlength=len(store.label_names))
    valid = np.bincount(store.labels[splits.classifier_valid], minlength=len(store.label_names))
    if train.sum() == 0:
        raise UserError("no labelled document to train the classifier on: set data.label, or run 'lm' or 'pretrain'")
    if valid.sum() == 0:
        raise UserError("no labelled document to validate the classifier on: check the labels of the valid split")
    for label, name in enumerate(store.label_names):
        if valid[label] > 0 and train[label] == 0:
            raise UserError(
                f"label {name!r} is in validation only ({valid[label]} documents): add training documents of that class, "
                f"take it out of validation, or change seed or data.valid_pct where the cut is by chance"
            )
    if np.count_nonzero(train) < 2:
        only = store.label_names[int(np.argmax(train))]
        raise UserError(f"a single class, {only!r}: a classifier needs two; check data.label and the class folders")


def _cut(documents: np.ndarray, share: float, seed: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Documents to train on and, by chance, a share of them to validate on."""
    order = permutation(len(documents), seed, purpose)
    num_valid = int(len(documents) * share)
    return np.sort(documents[order[num_valid:]]), np.sort(documents[order[:num_valid]])
