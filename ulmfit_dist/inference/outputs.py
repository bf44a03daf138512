"""Predictions of a classifier by its target (`classifier.target`): class, classes or value of a text."""

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
    """The predicted class of a text; it unpacks in the order of fastai's `learn.predict`.

    Attributes:
        label: the most probable class.
        index: index of the class.
        probabilities: probability by class, in the order of the classes; they sum to 1.
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
    """The predicted classes of a text: none, one or several.

    Attributes:
        labels: classes with a probability above `classifier.threshold`.
        indices: indices of these classes.
        probabilities: probability by class, in the order of the classes; they are independent.
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
    """The predicted value of a text."""

    value: float

    def __str__(self) -> str:
        return f"{self.value:.4f}"


AnyPrediction = Prediction | MulticategoryPrediction | RegressionPrediction


def answers_of(outputs_bC: Tensor, target: str) -> Tensor:
    """Return the probabilities of documents, or the values of a regression, float64 [b, outputs], for network outputs."""
    outputs_bC = outputs_bC.double()
    if target == "category":
        return outputs_bC.softmax(dim=1)
    return outputs_bC.sigmoid() if target == "multicategory" else outputs_bC


def outputs_of(answers_bC: Tensor, target: str) -> Tensor:
    """Return network outputs for these answers, up to a constant: the inverse of `answers_of`."""
    if target == "category":
        return answers_bC.clamp_min(torch.finfo(answers_bC.dtype).tiny).log()
    return torch.logit(answers_bC, eps=1e-15) if target == "multicategory" else answers_bC


def prediction_of(outputs: Sequence[float], labels: Sequence[str], settings: ClassifierConfig) -> AnyPrediction:
    """Return the prediction of one text.

    Args:
        outputs: probabilities of the classes, or the single value of a regression.
        labels: names of the classes.
        settings: config of the classifier, for its target and threshold.
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
