"""The cut of the documents before it is made: a test split, and classes that would be measured on, and not trained on.

A run stops at such a class. With rare classes it depends on the seed, so a seed is sought that spares it; a class of the
test split alone is an error at once, or where the test split is to be cut, a reason not to cut it. Only where all documents
were counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.profile.labels import LabelMeaning
from ulmfit_dist.data.profile.survey import SplitSurvey, Survey, survey_source
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.sources.subset import cut_test_split
from ulmfit_dist.data.splits import random_split
from ulmfit_dist.data.targets import classes_of_label
from ulmfit_dist.errors import UserError

TEST_SHARE, TEST_SHARE_OF_FEW = 0.1, 0.2
"""Share of the training documents that becomes the test split; the second below `FEW_DOCUMENTS` of them."""
FEW_DOCUMENTS = 5000
FEWEST_LABELLED = 200
"""Labelled documents below which no test split is cut: it would take too many, and tell too little."""
MOST_SEEDS = 200
MOST_WORK = 20_000_000
"""Documents times seeds that are tried at most."""


def cut_test(
    data: DataConfig, base: DataConfig, survey: Survey, meaning: LabelMeaning | None, given: Sequence[str]
) -> tuple[DataConfig, Survey, list[str]]:
    """Return the section with a test split cut from train where labelled texts have none, its survey, and why it is not cut.

    Args:
        base: the section with the keys that the user has set.
        given: names of these keys.
    """
    if "data.test_pct" in given:
        share, notices = base.test_pct, list[str]()
    else:
        share, notices = _test_share(data, survey, meaning)
    if share is None:
        return data, survey, notices
    cut = replace(data, test_pct=share)
    found = survey_source(cut_test_split(open_source(cut), share))
    if meaning is not None and "data.test_pct" not in given and (rare := _untrained(found, meaning, "test")):
        return data, survey, [f"no test split is cut: class {rare[0]!r} has too few documents to be in it and in train"]
    return cut, found, notices


def _test_share(data: DataConfig, survey: Survey, meaning: LabelMeaning | None) -> tuple[float | None, list[str]]:
    if "test" in survey.splits or meaning is None or data.folds is not None:
        return None, []
    train = survey.splits["train"]
    missing = train.labels[meaning.missing] if meaning.missing is not None else 0
    if (labelled := sum(train.labels.values()) - missing) * train.scale < FEWEST_LABELLED:
        return None, [
            f"no test split is cut: {labelled} labelled documents are too few; data.folds=5 with `ulmfit-dist "
            f"cross-validate` measures on all of them"
        ]
    return TEST_SHARE_OF_FEW if train.num_documents < FEW_DOCUMENTS else TEST_SHARE, []


def _untrained(survey: Survey, meaning: LabelMeaning, split: str) -> list[str]:
    """Return the classes of a split that no training document has."""
    if meaning.target == "regression":
        return []
    names, train = _classes(survey.splits["train"], meaning, {})
    _, others = _classes(survey.splits[split], meaning, names)
    trained, measured = set(train[:, 1].tolist()), set(others[:, 1].tolist())
    return [name for name, number in names.items() if number in measured - trained]


def choose_seed(survey: Survey, meaning: LabelMeaning, valid_pct: float, drops: bool, seed: int, where: str) -> int:
    """Return a seed by which each class that is validated on is trained on, too: the given one, or one of the next.

    Args:
        drops: whether training documents with the text of one that is validated on are left out.
        where: what messages call the texts.

    Raises:
        UserError: a class of the valid or test split alone; no such seed.
    """
    if not survey.is_exact or meaning.target == "regression":
        return seed
    names, train = _classes(survey.splits["train"], meaning, {})
    for split in ("valid", "test"):
        if split in survey.splits and (missing := _untrained(survey, meaning, split)):
            raise UserError(
                f"{where}: class {missing[0]!r} is in the {split} split and not in train: add training documents of it, "
                f"or take it out of {split}"
            )
    if "valid" in survey.splits:
        return seed
    hashes = survey.splits["train"].hashes
    unlucky = np.empty(0, dtype=np.int64)
    for candidate in range(seed, seed + max(1, min(MOST_SEEDS, MOST_WORK // max(len(hashes), 1)))):
        unlucky = _validated_only(train, hashes, valid_pct, candidate, drops)
        if not len(unlucky):
            return candidate
    shown = ", ".join(name for name, number in names.items() if number in unlucky[:5].tolist())
    raise UserError(
        f"{where}: classes of so few documents that some are validated on and not trained on, by every seed that was tried "
        f"({shown}): join rare classes, or leave their rows without a label"
    )


def _classes(split: SplitSurvey, meaning: LabelMeaning, names: dict[str, int]) -> tuple[dict[str, int], np.ndarray]:
    """Return numbers by class, and pairs of document and class, int64 [pairs, 2]. New classes are added to `names`."""
    pairs = []
    for document, label in enumerate(split.label_of):
        if label is None or label == meaning.missing:
            continue
        several = meaning.target == "multicategory"
        for name in classes_of_label(label, meaning.delimiter) if several else [label]:
            pairs.append((document, names.setdefault(name, len(names))))
    return names, np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _validated_only(pairs: np.ndarray, hashes: np.ndarray, valid_pct: float, seed: int, drops: bool) -> np.ndarray:
    """Return the classes that no training document has, and a validation document does."""
    train, valid = random_split(np.arange(len(hashes)), valid_pct, seed, "valid")
    if drops:
        train = train[~np.isin(hashes[train], hashes[valid])]
    is_train, is_valid = np.isin(pairs[:, 0], train), np.isin(pairs[:, 0], valid)
    return np.setdiff1d(pairs[is_valid, 1], pairs[is_train, 1])
