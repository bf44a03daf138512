"""Document splits: training, validation and test documents of each stage.

The splits depend only on the store, the seed and the fractions in the config. A document of the test split is never used
for training, validation or model selection, and the language model reads it only with `lm.use_test_texts` (transductive, as
in the paper: without labels). The language model does not train on documents that the classifier is validated on, unless
`lm.valid_pct` is set (fastai's tutorial: all texts, without labels). Trade-off: fewer texts for the language model than in
the tutorial.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.sources.split_names import split_of_name
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore
from ulmfit_dist.errors import UserError
from ulmfit_dist.rng.counter_based import permutation


@dataclass(frozen=True)
class DocumentSplits:
    """Indices of documents in the store, int64, ascending.

    Attributes:
        lm_train, lm_valid: documents of the language model, labelled or not.
        classifier_train, classifier_valid, test: labelled documents.
        unlabelled: documents without a label that a classifier may be trained on with pseudo-labels.
        test_texts: all documents of the test split.
    """

    lm_train: np.ndarray
    lm_valid: np.ndarray
    classifier_train: np.ndarray
    classifier_valid: np.ndarray
    unlabelled: np.ndarray
    test: np.ndarray
    test_texts: np.ndarray

    def sides(self, reads_test: bool, reads_unlabelled: bool = False) -> Iterator[tuple[str, np.ndarray, str, np.ndarray]]:
        """Yield pairs of splits that must not share a text: the one to learn from first, each with its name.

        Args:
            reads_test: the language model reads the texts of the test split.
            reads_unlabelled: the classifier reads documents without a label.
        """
        yield "the training split", self.classifier_train, "the valid split", self.classifier_valid
        yield "the training split", self.classifier_train, "the test split", self.test_texts
        yield "the valid split", self.classifier_valid, "the test split", self.test_texts
        if reads_unlabelled:
            yield "the classifier's unlabelled texts", self.unlabelled, "the valid split", self.classifier_valid
            yield "the classifier's unlabelled texts", self.unlabelled, "the test split", self.test_texts
        yield "the language model's texts", self.lm_train, "its valid texts", self.lm_valid
        if not reads_test:
            yield "the language model's texts", self.lm_train, "the test split", self.test_texts
            yield "the language model's valid texts", self.lm_valid, "the test split", self.test_texts


def split_documents(store: TokenStore, config: Config) -> DocumentSplits:
    """Return the splits of a store.

    Raises:
        UserError: a split is empty; two splits have equal texts, with `data.on_duplicates=error`.
        RuntimeError: a document is in two splits, which is a bug.
    """
    splits = _cut_store(store, config)
    _check_disjoint(splits, config)
    if config.data.on_duplicates == "warn":
        return splits
    if config.data.on_duplicates == "error":
        if described := describe_duplicates(store, splits, config):
            raise UserError(f"{described}: set data.on_duplicates=drop to leave them out of the first, or warn")
        return splits
    return _without_duplicates(store, splits, config)


def describe_duplicates(store: TokenStore, splits: DocumentSplits, config: Config) -> str:
    """Return a phrase with the number of documents whose text is in another split; empty if there are none."""
    counts = [
        f"{number:,} of {learned} in {other}"
        for learned, documents, other, others in splits.sides(config.lm.use_test_texts, _reads_unlabelled(config))
        if (number := int(_shared(store, documents, others).sum()))
    ]
    return f"equal texts in two splits, which make metrics too optimistic: {', '.join(counts)}" if counts else ""


def num_dropped(store: TokenStore, config: Config) -> int:
    """Return the number of documents that `data.on_duplicates=drop` removes from training and validation."""
    if config.data.on_duplicates != "drop":
        return 0
    before, after = _cut_store(store, config), split_documents(store, config)
    return len(_read(before)) - len(_read(after))


def _read(splits: DocumentSplits) -> np.ndarray:
    """Return all documents that are used for training or validation."""
    read = (splits.lm_train, splits.lm_valid, splits.classifier_train, splits.classifier_valid)
    return np.unique(np.concatenate(read))


def _cut_store(store: TokenStore, config: Config) -> DocumentSplits:
    train, valid, test = store.split("train"), store.split("valid"), store.split("test")
    if config.data.folds is not None:
        if len(valid) > 0:
            raise UserError(
                f"data.folds={config.data.folds} cuts the training documents, but {len(valid)} documents are in a valid "
                f"split: set data.folds=null, or name only the train split in data.splits"
            )
        train, valid = _cut_folds(train, store.labels[train], config.data.folds, config.data.fold, config.seed)
    elif len(valid) == 0:
        train, valid = random_split(train, config.data.valid_pct, config.seed, "valid")
    if len(train) == 0 or len(valid) == 0:
        raise UserError(
            f"{len(train)} documents to train on and {len(valid)} to validate on: name a valid split in data.splits, "
            f"give more documents, or change data.valid_pct={config.data.valid_pct}"
        )
    read = test if config.lm.use_test_texts else test[:0]
    lm_train, lm_valid = np.concatenate([train, store.split("unlabelled"), read]), valid
    if config.lm.valid_pct is not None:
        everything = np.arange(len(store))
        readable = everything if config.lm.use_test_texts else np.setdiff1d(everything, test)
        lm_train, lm_valid = random_split(readable, config.lm.valid_pct, config.seed, "lm_valid")
    return DocumentSplits(
        lm_train=lm_train,
        lm_valid=lm_valid,
        classifier_train=train[store.labels[train] != NO_LABEL],
        classifier_valid=valid[store.labels[valid] != NO_LABEL],
        unlabelled=np.concatenate([train[store.labels[train] == NO_LABEL], store.split("unlabelled")]),
        test=test[store.labels[test] != NO_LABEL],
        test_texts=test,
    )


def _check_disjoint(splits: DocumentSplits, config: Config) -> None:
    for learned, documents, other, others in splits.sides(config.lm.use_test_texts, _reads_unlabelled(config)):
        if number := len(np.intersect1d(documents, others)):
            raise RuntimeError(f"{number} documents are in {learned} and in {other}: this is a bug")


def _reads_unlabelled(config: Config) -> bool:
    return config.classifier.unlabelled.batch_size is not None


def _shared(store: TokenStore, documents: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return a mask of the documents whose text is also among the others, bool [documents]."""
    return np.isin(store.text_hashes[documents], store.text_hashes[others])


def _without_duplicates(store: TokenStore, splits: DocumentSplits, config: Config) -> DocumentSplits:
    """Return the splits without training and validation documents whose text is in a split that measures them."""

    def keep(documents: np.ndarray, *measured: np.ndarray) -> np.ndarray:
        kept: np.ndarray = documents[~_shared(store, documents, np.concatenate(measured))]
        if len(documents) and not len(kept):
            raise UserError("data.on_duplicates=drop leaves no training document: every text is also in another split")
        return kept

    unread = splits.test_texts[:0] if config.lm.use_test_texts else splits.test_texts
    return replace(
        splits,
        classifier_train=keep(splits.classifier_train, splits.classifier_valid, splits.test_texts),
        classifier_valid=keep(splits.classifier_valid, splits.test_texts),
        unlabelled=splits.unlabelled[~measured_texts(store, splits)],
        lm_train=keep(splits.lm_train, splits.lm_valid, unread),
        lm_valid=keep(splits.lm_valid, unread),
    )


def measured_texts(store: TokenStore, splits: DocumentSplits) -> np.ndarray:
    """Return a mask of the unlabelled documents whose text is also in the valid or the test split, bool [documents]."""
    return _shared(store, splits.unlabelled, np.concatenate([splits.classifier_valid, splits.test_texts]))


def valid_is_test(config: Config) -> bool:
    """Return whether `data.splits` names a test split as the valid split."""
    known = split_of_name(Path(config.data.splits.get("valid", "")).name.partition(".")[0])
    return known is not None and known[0] == "test"


def missing_labels(store: TokenStore, config: Config) -> str:
    """Return a message with the number of documents without a label, and what counts as none; empty if all have one."""
    with_labels = np.concatenate([store.split(split) for split in ("train", "valid", "test")])
    number = int((store.labels[with_labels] == NO_LABEL).sum())
    if number == 0 or config.data.missing_label is None:
        return ""
    name = config.data.missing_label
    return (
        f"{number:,} documents have no label: an empty one, or {name} (data.missing_label={name}; null if {name} is a class)"
    )


def _cut_folds(documents: np.ndarray, labels: np.ndarray, folds: int, fold: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the training documents and those of one fold; each class is shuffled and strided over the folds."""
    order = permutation(len(documents), seed, "folds")
    by_class = order[np.argsort(labels[order], kind="stable")]
    is_valid = np.zeros(len(documents), dtype=bool)
    is_valid[by_class[fold::folds]] = True
    return documents[~is_valid], documents[is_valid]


def random_split(documents: np.ndarray, fraction: float, seed: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Return documents to train on, and a random fraction of them to validate on.

    Args:
        purpose: name of the split; each name gives another permutation.
    """
    order = permutation(len(documents), seed, purpose)
    num_valid = int(len(documents) * fraction)
    return np.sort(documents[order[num_valid:]]), np.sort(documents[order[:num_valid]])
