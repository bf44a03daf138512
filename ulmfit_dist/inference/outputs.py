"""What a classifier says of a text, by what it was trained for (`classifier.target`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit_dist.config.schema import ClassifierConfig


@dataclass(frozen=True)
class Prediction:
    """The class of a text. It unpacks in the order of fastai's `learn.predict`.

    Attributes:
        label: the most probable class.
        index: its place in the list of classes.
        probabilities: by class, in that order; they sum to 1.
    """

    label: str
    index: int
    probabilities: dict[str, float]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.label, self.index, self.probabilities))

    def __str__(self) -> str:
        return f"{self.label} ({self.index})  {_listed(self.probabilities)}"


@dataclass(frozen=True)
class MulticategoryPrediction:
    """The classes of a text that may have several, or none.

    Attributes:
        labels: those whose probability is above `classifier.threshold`.
        indices: their places in the list of classes.
        probabilities: by class, in that order; each for itself.
    """

    labels: list[str]
    indices: list[int]
    probabilities: dict[str, float]

    def __iter__(self) -> Iterator[Any]:
        return iter((self.labels, self.indices, self.probabilities))

    def __str__(self) -> str:
        return f"{';'.join(self.labels) or 'none'}  {_listed(self.probabilities)}"


@dataclass(frozen=True)
class RegressionPrediction:
    """The number that a text is given."""

    value: float

    def __str__(self) -> str:
        return f"{self.value:.4f}"


AnyPrediction = Prediction | MulticategoryPrediction | RegressionPrediction


def answers_of(outputs_bC: Tensor, target: str) -> Tensor:
    """What a classifier says of documents, float64 [b, outputs], from what its network gives: probabilities, or numbers."""
    outputs_bC = outputs_bC.double()
    if target == "category":
        return outputs_bC.softmax(dim=1)
    return outputs_bC.sigmoid() if target == "multicategory" else outputs_bC


def outputs_of(answers_bC: Tensor, target: str) -> Tensor:
    """What a network would have given for these answers: `answers_of` the other way round, but for a constant."""
    if target == "category":
        return answers_bC.clamp_min(torch.finfo(answers_bC.dtype).tiny).log()
    return torch.logit(answers_bC, eps=1e-15) if target == "multicategory" else answers_bC


def prediction_of(outputs: Sequence[float], labels: Sequence[str], settings: ClassifierConfig) -> AnyPrediction:
    """The prediction of one text.

    Args:
        outputs: the probabilities of its classes, or its number alone.
        labels: names of the classes.
        settings: what the classifier was trained for, and from which probability on a text has a class.
    """
    if settings.target == "regression":
        return RegressionPrediction(outputs[0])
    probabilities = dict(zip(labels, outputs, strict=True))
    if settings.target == "multicategory":
        indices = [i for i, probability in enumerate(outputs) if probability > settings.threshold]
        return MulticategoryPrediction([labels[i] for i in indices], indices, probabilities)
    index = int(np.argmax(outputs))
    return Prediction(labels[index], index, probabilities)


def _listed(probabilities: Mapping[str, float]) -> str:
    return "  ".join(f"{label} {p:.4f}" for label, p in probabilities.items())
