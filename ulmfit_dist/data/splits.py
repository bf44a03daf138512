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
    if config.data.folds is not None:
        if len(valid) > 0:
            raise UserError(
                f"data.folds={config.data.folds} cuts the training documents, and {len(valid)} are of a valid split: set it "
                f"to null, or have data.splits name the training documents alone"
            )
        train, valid = _cut_folds(train, store.labels[train], config.data.folds, config.data.fold, config.seed)
    elif len(valid) == 0:
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


def missing_labels(store: TokenStore, config: Config) -> str:
    """Return how many documents that could have a label have none, and what counts as none; empty if all have one."""
    with_labels = np.concatenate([store.split(split) for split in ("train", "valid", "test")])
    number = int((store.labels[with_labels] == NO_LABEL).sum())
    if number == 0 or config.data.no_label is None:
        return ""
    name = config.data.no_label
    return f"{number:,} documents have no label: an empty one, or {name} (data.no_label={name}; null if {name} is a class)"


def _cut_folds(documents: np.ndarray, labels: np.ndarray, folds: int, fold: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents to train on, and those of one fold: each class, in an order by chance, is dealt to the folds like cards."""
    order = permutation(len(documents), seed, "folds")
    by_class = order[np.argsort(labels[order], kind="stable")]
    is_valid = np.zeros(len(documents), dtype=bool)
    is_valid[by_class[fold::folds]] = True
    return documents[~is_valid], documents[is_valid]


def _cut(documents: np.ndarray, share: float, seed: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Documents to train on and, by chance, a share of them to validate on."""
    order = permutation(len(documents), seed, purpose)
    num_valid = int(len(documents) * share)
    return np.sort(documents[order[num_valid:]]), np.sort(documents[order[:num_valid]])
