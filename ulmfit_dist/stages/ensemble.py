"""Several classifiers that answer together: the mean of their probabilities.

The paper's figures are those of two, of which one reads the texts from their end (Howard & Ruder, 2018, section 3.3). Each
member has a tokenizer and vocabulary of its own, so for new texts they must agree on the labels alone. To be measured
they must have the same token store and the same validation documents: on others, one of them may have trained.

N: validation documents, C: classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.store import TokenStore
from ulmfit_dist.data.targets import read_targets
from ulmfit_dist.errors import UserError
from ulmfit_dist.model.export import Exported, read_exported
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.stages.answers import compute_answers, figures_of_answers
from ulmfit_dist.stages.evaluate import check_functions, check_store
from ulmfit_dist.stages.predict import Classifier, TextClassifier
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.run import model_folder


class Ensemble(Classifier):
    """Exported classifiers as one.

    Args:
        folders: of each, a run directory or its `classifier/`.
        device: where to compute.
        trust_rules: whether to call what the models' configs name of yours (tokenizer.rules, model.arch).

    Attributes:
        members: the classifiers.

    Raises:
        UserError: less than two; no classifier there, or a damaged one; labels that differ.
    """

    def __init__(self, folders: Sequence[str | Path], device: torch.device | str = "cpu", trust_rules: bool = False):
        self.labels = _common_labels(_read_members(folders))
        self.members = [TextClassifier(folder, device, trust_rules) for folder in folders]
        self.settings = self.members[0].settings

    def _predict_part(self, texts: Sequence[str], batch_tokens: int) -> np.ndarray:
        return np.mean([member._predict_part(texts, batch_tokens) for member in self.members], axis=0)


def evaluate_ensemble(folders: Sequence[str | Path], runtime: Runtime, trust_rules: bool = False) -> dict[str, Any]:
    """Metrics of classifiers and of their mean on the validation documents that they have in common. Collective.

    Args:
        folders, trust_rules: as for `Ensemble`.

    Returns:
        `ensemble`: the figures of the mean, as `evaluate` gives them for a classifier; `members`: for each its folder, as
        `run`, and those of the figures that are a single number.

    Raises:
        UserError: as `Ensemble`; no store of their texts, or texts that have changed since; members that were trained on
            different texts, or validated on different documents.
    """
    members = _read_members(folders)
    _common_labels(members)
    for exported in members:
        check_functions(exported, trust_rules)
    stores = [prepare(exported.config, runtime) for exported in members]
    with runtime.together():
        documents_N = _common_documents(members, stores)
    pairs = zip(members, stores, strict=True)
    answers = [compute_answers(*pair, documents_N, runtime, trust_rules) for pair in pairs]
    first, store = members[0].config, stores[0]
    targets = read_targets(store, first.classifier, first.data.label_delim)
    y_N = targets.of(store.labels[documents_N])
    *alone, together = [
        figures_of_answers(answers_NC, y_N, targets, first.classifier, runtime)
        for answers_NC in (*answers, torch.stack(answers).mean(0))
    ]
    return {
        "members": [{"run": str(run)} | _single_numbers(figures) for run, figures in zip(folders, alone, strict=True)],
        "ensemble": together,
    }


def _single_numbers(figures: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if isinstance(value, float)}


def _read_members(folders: Sequence[str | Path]) -> list[Exported]:
    if len(folders) < 2:
        raise UserError(f"an ensemble of {len(folders)}: name two runs or more, such as runs/imdb runs/imdb-backwards")
    return [read_exported(model_folder(Path(folder), "classifier")) for folder in folders]


def _common_labels(members: Sequence[Exported]) -> list[str]:
    first, *others = members
    for other in others:
        if other.config.classifier.target != first.config.classifier.target:
            raise UserError(
                f"{other.folder} and {first.folder} have not the same classifier.target: they cannot be averaged"
            )
        if other.labels != first.labels:
            raise UserError(
                f"{other.folder} has other labels ({_named(other.labels)}) than {first.folder} ({_named(first.labels)}): "
                f"the members of an ensemble must have the same"
            )
    assert first.labels is not None  # model_folder has looked for them
    return first.labels


def _named(labels: Sequence[str] | None) -> str:
    labels = labels or []
    return ", ".join(labels[:5]) + (f", ... {len(labels)} in all" if len(labels) > 5 else "")


def _common_documents(members: Sequence[Exported], stores: Sequence[TokenStore]) -> np.ndarray:
    """The documents that all were validated on, int64 [N], ascending."""
    first, expected = members[0], split_documents(stores[0], members[0].config).classifier_valid
    for exported, store in zip(members, stores, strict=True):
        check_store(exported, store)
        if store.fingerprint != stores[0].fingerprint:
            raise UserError(
                f"{exported.folder} was trained on another token store ({store.path}) than {first.folder} "
                f"({stores[0].path}): give both the same texts and tokenizer; or label texts with them (--text, --file)"
            )
        if not np.array_equal(split_documents(store, exported.config).classifier_valid, expected):
            raise UserError(
                f"{exported.folder} was validated on other documents than {first.folder}, so one has trained on what "
                f"measures the other: train both with the same seed and data.valid_pct"
            )
    return expected
