"""Choice of pseudo-labels: which unlabelled documents a student is trained on, from the answers of a teacher.

Documents are ranked by confidence within the class that the teacher gives them. A candidate share s takes of each class at
most the share s of its documents, and at most the class's part, by the labelled training documents, of the share s of all:
a class that the teacher gives too often is cut, so students do not drift towards it; one that it gives too rarely keeps
fewer. The largest share is chosen whose error on valid, at the same confidences, is low enough. With few valid documents
such an error is mostly chance, so it is drawn towards the error of all of them (`PRIOR`). If none is low enough, the share
with the lowest error is chosen, because the student may still be better; valid decides.

Ranks differ by rounding (some 1e-14) in their sums, so probabilities are rounded to 1e-6 before they choose a class, and
confidences (log odds) before they are ranked; equal ones are ordered by document. Trade-off: a value that lies on the edge
of rounding may still fall on either side, which a change of 1e-14 makes improbable, not impossible.

N: unlabelled documents, M: valid documents, C: classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ulmfit_dist.config.schema import SelfTrainingConfig

DIGITS = 6
"""Decimal digits of probabilities and confidences."""
PRIOR = 5.0
"""Weight of the error of all valid documents in that of a share, in documents."""
TINY = 1e-300


@dataclass(frozen=True)
class RatedAnswers:
    """Classes and confidences of documents.

    Attributes:
        classes: most probable class, int64 [N].
        log_odds: log of its probability over that of all other classes, float64 [N].
        probabilities: its probability, float64 [N].
    """

    classes: np.ndarray
    log_odds: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Choice:
    """Chosen pseudo-labels.

    Attributes:
        rows: rows of the unlabelled documents that are chosen, int64, ascending.
        share: the chosen share.
        confidences: lowest chosen probability of each class, float64 [C]; NaN for a class without any.
        num_valid, num_errors: valid documents at these confidences, and how many of them are wrong.
        error: their error, drawn towards that of all valid documents.
        limit: the highest error that is low enough.
    """

    rows: np.ndarray
    share: float
    confidences: np.ndarray
    num_valid: int
    num_errors: int
    error: float
    limit: float

    @property
    def is_low_enough(self) -> bool:
        return self.error <= self.limit

    def describe(self, num_unlabelled: int) -> str:
        """Return the choice and its reason as one line, without a class."""
        chosen = f"{len(self.rows):,} of {num_unlabelled:,} unlabelled documents, the most confident {self.share:.0%}"
        reason = "the largest share" if self.is_low_enough else "the best share, but not one"
        seen = f"{self.error:.3f} ({self.num_errors} of {self.num_valid} documents wrong)"
        return f"{chosen}: {reason} with an error on valid of at most {self.limit:.3f}: {seen}"


def rate_answers(answers_NC: np.ndarray) -> RatedAnswers:
    """Return classes and confidences, rounded, for probabilities, float64 [N, C]."""
    classes_N = answers_NC.round(DIGITS).argmax(1)  # of equal ones the first
    rows_N = np.arange(len(answers_NC))
    top_N = answers_NC[rows_N, classes_N]
    others_NC = answers_NC.copy()
    others_NC[rows_N, classes_N] = 0.0
    log_odds_N = np.log(np.maximum(top_N, TINY)) - np.log(np.maximum(others_NC.sum(1), TINY))
    return RatedAnswers(classes_N, log_odds_N.round(DIGITS), top_N.round(DIGITS))


def choose(
    unlabelled: RatedAnswers, valid: RatedAnswers, y_M: np.ndarray, labelled_C: np.ndarray, settings: SelfTrainingConfig
) -> Choice:
    """Return the pseudo-labels of the largest share whose error on valid is low enough, else of that with the lowest.

    Args:
        y_M: classes of the valid documents, int64 [M].
        labelled_C: labelled training documents of each class, int64 [C].
    """
    wrong_M = valid.classes != y_M
    whole_error = (wrong_M.sum() + 1) / (len(y_M) + 2)
    limit = float(max(settings.accepted_error, settings.error_ratio * whole_error))
    choices: list[Choice] = []
    for share in settings.shares:
        rows, lowest_C = take_share(unlabelled, share, labelled_C, settings.max_documents)
        accepted_M = valid.log_odds >= lowest_C[valid.classes]
        errors, number = int(wrong_M[accepted_M].sum()), int(accepted_M.sum())
        error = float((errors + PRIOR * whole_error) / (number + PRIOR))
        confidences_C = np.full(len(labelled_C), np.nan)
        for c in np.unique(unlabelled.classes[rows]):
            confidences_C[c] = unlabelled.probabilities[rows][unlabelled.classes[rows] == c].min()
        choices.insert(0, Choice(rows, share, confidences_C, number, errors, error, limit))
    filled = [choice for choice in choices if len(choice.rows)] or choices  # the error of no document is not evidence
    return next((choice for choice in filled if choice.is_low_enough), min(filled, key=lambda choice: choice.error))


def take_share(
    unlabelled: RatedAnswers, share: float, labelled_C: np.ndarray, max_documents: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the most confident documents of each class, int64 ascending, and each class's lowest log odds.

    Of more than `max_documents`, as many are taken, at even distances in the order of confidence of each class, because the
    most confident ones teach least. The log odds, float64 [C], are infinite for a class without any.
    """
    total = share * len(unlabelled.classes)
    most = math.inf if max_documents is None else max_documents
    parts_C = labelled_C / labelled_C.sum()
    taken, lowest_C = [], np.full(len(labelled_C), np.inf)
    for c, part in enumerate(parts_C):
        rows = np.flatnonzero(unlabelled.classes == c)
        number = min(int(np.ceil(share * len(rows))), int(total * part))
        if number:
            ranked = rows[np.argsort(-unlabelled.log_odds[rows], kind="stable")][:number]
            lowest_C[c] = unlabelled.log_odds[ranked[-1]]
            limit = int(min(number, most * part))
            taken.append(ranked[np.linspace(0, number - 1, limit).astype(int)])
    return np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *taken])), lowest_C
