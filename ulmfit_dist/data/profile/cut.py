"""Splits that `init` plans: a test split, and a seed for which every class has training documents.

Training stops if a class is validated or tested on but not trained on. With rare classes this depends on the seed, so a
working seed is searched for. A class only in the test split is an error; if the test split would be cut, it is not. This
holds only if all documents were counted; trade-off: with a sample, the error comes at training.
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
"""Fractions of the training documents that become the test split; the second below `FEW_DOCUMENTS` documents."""
FEW_DOCUMENTS = 5000
FEWEST_LABELLED = 200
"""Minimum number of labelled documents for a test split."""
MOST_SEEDS = 200
"""Maximum number of seeds to try."""
MOST_WORK = 20_000_000
"""Maximum product of documents and seeds."""


def cut_test(
    data: DataConfig, base: DataConfig, survey: Survey, meaning: LabelMeaning | None, given: Sequence[str]
) -> tuple[DataConfig, Survey, list[str]]:
    """Cut a test split from train, if labelled texts have none.

    Args:
        data: `data` section so far.
        base: `data` section with the keys that the user has set.
        survey: counts of the source.
        meaning: meaning of the labels; None if there are no labels.
        given: names of the keys that the user has set.

    Returns:
        The section, the survey of the resulting splits, and messages about a test split that is not cut.
    """
    if "data.test_pct" in given:
        fraction, notices = base.test_pct, list[str]()
    else:
        fraction, notices = _test_fraction(data, survey, meaning)
    if fraction is None:
        return data, survey, notices
    cut = replace(data, test_pct=fraction)
    cut_survey = survey_source(cut_test_split(open_source(cut), fraction))
    if meaning is not None and "data.test_pct" not in given and (rare := _untrained(cut_survey, meaning, "test")):
        return data, survey, [f"no test split is cut: class {rare[0]!r} has too few documents to be in test and in train"]
    return cut, cut_survey, notices


def _test_fraction(data: DataConfig, survey: Survey, meaning: LabelMeaning | None) -> tuple[float | None, list[str]]:
    if "test" in survey.splits or meaning is None or data.folds is not None:
        return None, []
    train = survey.splits["train"]
    missing = train.labels[meaning.missing] if meaning.missing is not None else 0
    if (labelled := sum(train.labels.values()) - missing) * train.scale < FEWEST_LABELLED:
        return None, [
            f"no test split is cut: {labelled} labelled documents are too few: `ulmfit-dist cross-validate` with "
            f"data.folds=5 measures on all of them"
        ]
    return TEST_SHARE_OF_FEW if train.num_documents < FEW_DOCUMENTS else TEST_SHARE, []


def _untrained(survey: Survey, meaning: LabelMeaning, split: str) -> list[str]:
    """Return the classes of a split that have no training document."""
    if meaning.target == "regression":
        return []
    names, train = _classes(survey.splits["train"], meaning, {})
    _, others = _classes(survey.splits[split], meaning, names)
    trained, measured = set(train[:, 1].tolist()), set(others[:, 1].tolist())
    return [name for name, number in names.items() if number in measured - trained]


def choose_seed(survey: Survey, meaning: LabelMeaning, valid_pct: float, drops: bool, seed: int, origin: str) -> int:
    """Return the first seed, from `seed` on, for which each validated class has training documents.

    Args:
        drops: training documents with the text of a validation document are left out.
        origin: name of the texts, for messages.

    Raises:
        UserError: a class is only in the valid or test split; no seed works.
    """
    if not survey.is_exact or meaning.target == "regression":
        return seed
    names, train = _classes(survey.splits["train"], meaning, {})
    for split in ("valid", "test"):
        if split in survey.splits and (missing := _untrained(survey, meaning, split)):
            raise UserError(
                f"{origin}: class {missing[0]!r} is in the {split} split but not in train: add training documents of this "
                f"class, or remove it from {split}"
            )
    if "valid" in survey.splits:
        return seed
    hashes = survey.splits["train"].hashes
    untrained = np.empty(0, dtype=np.int64)
    for candidate in range(seed, seed + max(1, min(MOST_SEEDS, MOST_WORK // max(len(hashes), 1)))):
        untrained = _validated_only(train, hashes, valid_pct, candidate, drops)
        if not len(untrained):
            return candidate
    shown = ", ".join(name for name, number in names.items() if number in untrained[:5].tolist())
    raise UserError(
        f"{origin}: some classes have too few documents to be in train and in valid, with every seed that was tried "
        f"({shown}): merge rare classes, or leave their rows without a label"
    )


def _classes(split: SplitSurvey, meaning: LabelMeaning, names: dict[str, int]) -> tuple[dict[str, int], np.ndarray]:
    """Return class indices by name, and pairs of document and class, int64 [pairs, 2]. New classes are added to `names`."""
    pairs = []
    for document, label in enumerate(split.label_of):
        if label is None or label == meaning.missing:
            continue
        several = meaning.target == "multicategory"
        for name in classes_of_label(label, meaning.delimiter) if several else [label]:
            pairs.append((document, names.setdefault(name, len(names))))
    return names, np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _validated_only(pairs: np.ndarray, hashes: np.ndarray, valid_pct: float, seed: int, drops: bool) -> np.ndarray:
    """Return the classes of validation documents that have no training document."""
    train, valid = random_split(np.arange(len(hashes)), valid_pct, seed, "valid")
    if drops:
        train = train[~np.isin(hashes[train], hashes[valid])]
    is_train, is_valid = np.isin(pairs[:, 0], train), np.isin(pairs[:, 0], valid)
    return np.setdiff1d(pairs[is_valid, 1], pairs[is_train, 1])
