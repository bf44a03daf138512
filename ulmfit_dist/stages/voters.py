"""Answers of the members of an ensemble run to their documents, their mean, and whether the linear model votes in it.

Nothing here reads a label of the test split. The linear model votes if it lowers the log loss of the mean on the validation
documents by at least one standard error of that difference (the one-standard-error rule of Breiman et al., 1984): with few
documents only a large difference counts. Trade-off: temperatures are fitted to the same documents, one number per member.

M: members, N: documents, C: classes, or 1 for a regression.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.targets import read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.stages.evaluate_ensemble import Answers, figures_by_split, single_numbers

LINEAR = "linear"
"""Name of the linear model among the voters."""
MOST_COMBINED = 3
"""Maximum number of voters of which all combinations are reported: their number doubles with each voter."""
PROBABILITY = 1e-15
"""Smallest probability in a log loss: a linear model gives a class without training documents exactly 0."""


@dataclass(frozen=True)
class Documents:
    """Documents that an ensemble run is measured on.

    Attributes:
        kind: as `EnsembleFile.kind`.
        names: names of the members.
        config: config of the first member.
        valid: validation documents of each member, int64: the same ones, or those of its fold.
        test: labelled documents of the test split.
    """

    kind: str
    names: list[str]
    config: Config
    valid: list[np.ndarray]
    test: np.ndarray

    @property
    def sides(self) -> dict[str, np.ndarray]:
        """All documents by split: those of the folds together, ascending."""
        valid_N = np.sort(np.concatenate(self.valid)) if self.kind == "folds" else self.valid[0]
        return {"valid": valid_N, **({"test": self.test} if len(self.test) else {})}


def make_voters(documents: Documents, classifiers: Sequence[Answers], linear: Sequence[Answers]) -> dict[str, Answers]:
    """Return the answers whose mean is that of the ensemble, by name, from those of its models at their temperatures.

    Of folds, each validation document has the answer of the one model that has not read it, and a test document the mean of
    all of them.
    """
    if documents.kind == "folds":
        return {"classifiers": _out_of_fold(documents, classifiers)} | (
            {LINEAR: _out_of_fold(documents, linear)} if linear else {}
        )
    return dict(zip(documents.names, classifiers, strict=True)) | ({LINEAR: linear[0]} if linear else {})


def mean_of(voters: Mapping[str, Answers]) -> Answers:
    """Return the mean of voters by split."""
    first = next(iter(voters.values()))
    return {side: torch.stack([answers[side] for answers in voters.values()]).mean(0) for side in first}


def select_voters(
    documents: Documents, voters: Mapping[str, Answers], store: TokenStore, runtime: Runtime
) -> tuple[bool, dict[str, Any]]:
    """Return whether the linear model votes, and what that was decided by. Collective.

    Returns:
        The second part has `combinations`, the figures of combinations of voters on the validation documents, and, if
        there is a linear model, `gain`, the mean decrease of the log loss (of the squared error for a regression) that it
        brings, and its `standard_error`.
    """
    valid_N, config = documents.sides["valid"], documents.config
    combinations = {}
    for names in compared_combinations(list(voters)):
        answers = {"valid": mean_of({name: voters[name] for name in names})["valid"]}
        figures = figures_by_split(answers, {"valid": valid_N}, config, store, runtime)
        combinations[" + ".join(names)] = single_numbers(figures)
    if LINEAR not in voters:
        return False, {"combinations": combinations}
    y = read_targets(store, config.classifier, config.data.label_delim).of(store.labels[valid_N])
    without = mean_of({name: answers for name, answers in voters.items() if name != LINEAR})["valid"]
    gain_N = losses(without, y, config.classifier.target) - losses(mean_of(voters)["valid"], y, config.classifier.target)
    gain, error = float(gain_N.mean()), standard_error(gain_N)
    votes = is_gain(gain, error)
    return votes, {"combinations": combinations, "gain": gain, "standard_error": error if math.isfinite(error) else None}


def compared_combinations(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the combinations of voters to report: all of up to three, else each alone, the classifiers, and all."""
    if len(names) <= MOST_COMBINED:
        return [part for size in range(1, len(names) + 1) for part in itertools.combinations(names, size)]
    classifiers = tuple(name for name in names if name != LINEAR)
    return list(dict.fromkeys([*((name,) for name in names), classifiers, tuple(names)]))


def is_gain(gain: float, error: float) -> bool:
    """Return whether a mean gain is at least its standard error, and more than nothing."""
    return gain > 0 and gain >= error


def standard_error(values_N: np.ndarray) -> float:
    """Return the standard error of a mean; infinite for fewer than two values."""
    return float(values_N.std(ddof=1) / math.sqrt(len(values_N))) if len(values_N) > 1 else math.inf


def losses(answers_NC: Tensor, y: Tensor, target: str) -> np.ndarray:
    """Return the log loss of each document (for several classes: the mean over them), or its squared error, float64 [N]."""
    answers, true = answers_NC.cpu().double().numpy(), y.cpu().numpy()
    if target == "regression":
        errors_N: np.ndarray = (answers[:, 0] - true) ** 2
        return errors_N
    if target == "category":
        p_N = answers[np.arange(len(true)), true]
        log_N: np.ndarray = -np.log(np.maximum(p_N, PROBABILITY))
        return log_N
    p_NC = np.where(true > 0.5, answers, 1 - answers)
    mean_N: np.ndarray = -np.log(np.maximum(p_NC, PROBABILITY)).mean(1)
    return mean_N


def _out_of_fold(documents: Documents, parts: Sequence[Answers]) -> Answers:
    valid_N = documents.sides["valid"]
    first = parts[0]["valid"]
    answers = {"valid": torch.zeros(len(valid_N), first.shape[1], dtype=first.dtype, device=first.device)}
    for fold_N, part in zip(documents.valid, parts, strict=True):
        answers["valid"][np.searchsorted(valid_N, fold_N)] = part["valid"]
    if "test" in documents.sides:
        answers["test"] = torch.stack([part["test"] for part in parts]).mean(0)
    return answers
