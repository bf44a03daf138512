"""Rounds of a self-training in a report, from `self_training.json`; values of other types are left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ulmfit_dist.report.parsing import items, mapping, number, numbers, text

MOST_ROUNDS = 100
"""Maximum number of rounds that are shown."""


@dataclass(frozen=True)
class Round:
    """Round of a self-training.

    Attributes:
        documents: number of pseudo-labels by class; empty for round 0.
        confidences: lowest probability of a pseudo-label by class.
        share: share of the unlabelled documents that was chosen.
        valid_error: error of this share on valid, smoothed.
        value: the metric that rounds are compared by, on valid.
        seconds: duration.
        is_best: True for the round whose classifier is exported.
    """

    documents: dict[str, float]
    confidences: dict[str, float]
    share: float | None
    valid_error: float | None
    value: float | None
    seconds: float | None
    is_best: bool

    @property
    def num_documents(self) -> float | None:
        """Number of pseudo-labels; None if the round has none."""
        return sum(self.documents.values()) if self.documents else None


@dataclass(frozen=True)
class SelfTraining:
    """Rounds, the metric that they are compared by, and why there are no more."""

    metric: str = ""
    end: str = ""
    rounds: list[Round] = field(default_factory=list)


def read_self_training(content: Any) -> SelfTraining:
    """Return the rounds of the content of `self_training.json`."""
    tree = mapping(content)
    metric, best = text(tree.get("metric")), number(tree.get("best"))
    rounds = []
    for i, item in enumerate(items(tree.get("rounds"), MOST_ROUNDS)):
        one = mapping(item)
        rounds.append(
            Round(
                documents=numbers(one.get("documents")),
                confidences=numbers(one.get("confidences")),
                share=number(one.get("share")),
                valid_error=number(one.get("valid_error")),
                value=numbers(one.get("valid")).get(metric),
                seconds=number(one.get("seconds")),
                is_best=i == best,
            )
        )
    return SelfTraining(metric, text(tree.get("end")), rounds)
