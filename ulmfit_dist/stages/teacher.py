"""Teacher of a round of self-training: the mean of classifiers and the linear baseline, and the labels that it gives.

Each member's probabilities are scaled by a temperature that is fitted to the valid split, with a prior, because it may be
small. The baseline sees no pseudo-label (with `lsa` it reads texts without their labels), so its opinion does not follow
that of earlier rounds. Trade-off: with `teacher: baseline` and no voters all rounds get the same labels, so one round is
enough, unless `scored_documents` draws other texts in each.

N: documents, C: classes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulmfit_dist.config.loading import to_dict
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.pseudo_labels import PseudoLabels, documents_digest
from ulmfit_dist.data.splits import DocumentSplits, measured_texts, split_documents
from ulmfit_dist.data.targets import read_targets
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.answers import compute_answers
from ulmfit_dist.inference.ensemble import common_labels, read_members
from ulmfit_dist.inference.temperature import LOG_DEVIATION, fit_temperature, scale_answers
from ulmfit_dist.models.bundle import ModelBundle, bundle_digest
from ulmfit_dist.rng.counter_based import permutation
from ulmfit_dist.stages.evaluate import check_functions
from ulmfit_dist.stages.evaluate_ensemble import common_documents
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.pseudo_label_choice import choose, rate_answers
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

CHOICE_KEYS = ("teacher", "shares", "error_ratio", "accepted_error", "scored_documents", "max_documents")
"""Keys of the self_training section that the pseudo-labels depend on, beside the classifiers."""
Sides = dict[str, Tensor]
"""Probabilities of the classes, float64 [N, C], of the valid and the unlabelled documents."""


def read_teacher(config: Config, student: Path, runtime: Runtime, trust_remote_code: bool = False) -> list[ModelBundle]:
    """Return the classifiers of the teacher, checked. Collective.

    Args:
        student: run directory of the round before.
        trust_remote_code: call user-defined functions of the voters' configs.

    Raises:
        UserError: a voter that is missing, has other labels, or was trained on other texts, or whose training documents are
            valid documents of this run.
    """
    settings = config.self_training
    with runtime.fail_together():
        members = read_members([student, *settings.voters], least=1)
        common_labels(members)
        for voter in members[1:]:
            check_functions(voter, trust_remote_code)
    stores = [prepare(member.config, runtime) for member in members]
    with runtime.fail_together():
        common_documents(members, stores)
    return members if settings.teacher != "baseline" else members[1:]


def unlabelled_documents(store: TokenStore, config: Config) -> np.ndarray:
    """Return the documents to label, int64 [N]: training documents without a label, never of valid or test.

    Raises:
        UserError: there are none, or, with `data.on_duplicates=error`, one has the text of a valid or test document.
    """
    splits = split_documents(store, config)
    if not len(splits.unlabelled):
        raise UserError(
            "no document without a label to train on: self-train needs an unlabelled split (data.splits), or training "
            "documents with an empty label"
        )
    if config.data.on_duplicates != "drop" and (number := int(measured_texts(store, splits).sum())):
        message = f"{number:,} unlabelled documents have the text of a valid or test document"
        if config.data.on_duplicates == "error":
            raise UserError(f"{message}: set data.on_duplicates=drop to leave them out, or warn")
        logger.warning(f"{message}: data.on_duplicates=drop leaves them out")
    return splits.unlabelled


def identity_of(members: Sequence[ModelBundle], config: Config, store: TokenStore) -> dict[str, Any]:
    """Return what the pseudo-labels of a teacher depend on, as JSON values."""
    settings = to_dict(config)["self_training"]
    features = {} if settings["teacher"] == "classifier" else {"baseline_features": config.classifier.baseline_features}
    return {
        "fingerprint": store.fingerprint,
        "valid": documents_digest(split_documents(store, config).classifier_valid),
        "models": [bundle_digest(member.folder) for member in members],
        **{key: settings[key] for key in CHOICE_KEYS},
        **features,
    }


def draw_documents(documents_N: np.ndarray, config: Config, number: int) -> np.ndarray:
    """Return the documents that the teacher of a round labels, int64 [M], ascending: all, or a draw by seed and round."""
    most = config.self_training.scored_documents
    if most is None or most >= len(documents_N):
        return documents_N
    return np.sort(documents_N[permutation(len(documents_N), config.seed, "self-training", number)[:most]])


def make_pseudo_labels(
    members: Sequence[ModelBundle],
    config: Config,
    number: int,
    runtime: Runtime,
    store: TokenStore,
    trust_remote_code: bool = False,
) -> PseudoLabels:
    """Label unlabelled documents with the teacher of a round, and choose those to train on.

    Collective; the same on every rank.
    """
    started = time.perf_counter()
    settings = config.self_training
    with runtime.fail_together():
        splits = split_documents(store, config)
        unlabelled_N = draw_documents(unlabelled_documents(store, config), config, number)
        sides = {"valid": splits.classifier_valid, "unlabelled": unlabelled_N}
    answers: list[Sides] = [
        {
            side: compute_answers(member, store, documents_N, runtime, trust_remote_code)
            for side, documents_N in sides.items()
        }
        for member in members
    ]
    if settings.teacher != "classifier":
        from ulmfit_dist.stages.baseline import baseline_answers  # scikit-learn takes a second to import

        _, _, linear, _ = baseline_answers(config, runtime, store, {"unlabelled": sides["unlabelled"]})
        answers.append({side: torch.from_numpy(part).to(runtime.device) for side, part in linear.items()})
    labels = None
    with runtime.fail_together():
        if runtime.is_main:
            labels = _choose(answers, config, store, (splits, unlabelled_N))
            labels.metadata.update(identity_of(members, config, store), seconds=round(time.perf_counter() - started, 1))
    chosen = runtime.broadcast_object(labels)
    assert chosen is not None
    return chosen


def _choose(
    answers: Sequence[Sides], config: Config, store: TokenStore, documents: tuple[DocumentSplits, np.ndarray]
) -> PseudoLabels:
    """Return the pseudo-labels chosen of the scored documents, int64 [N], and print what was chosen and why."""
    splits, unlabelled_N = documents
    targets = read_targets(store, config.classifier, config.data.label_delim)
    y = targets.of(store.labels[splits.classifier_valid])
    temperatures = [fit_temperature(part["valid"], y, targets.kind, LOG_DEVIATION) for part in answers]
    mean = {
        side: torch.stack(
            [scale_answers(part[side], t, targets.kind) for part, t in zip(answers, temperatures, strict=True)]
        ).mean(0)
        for side in ("valid", "unlabelled")
    }
    valid, unlabelled = (rate_answers(mean[side].cpu().numpy()) for side in ("valid", "unlabelled"))
    labelled_C = targets.documents_of_classes(store.labels[splits.classifier_train])
    choice = choose(unlabelled, valid, y.numpy(), labelled_C, config.self_training)
    logger.info(f"pseudo-labels: {choice.describe(len(unlabelled_N))}")
    names = [targets.names[c] for c in unlabelled.classes[choice.rows]]
    metadata = {
        "share": choice.share,
        "confidences": {name: c for name, c in zip(targets.names, choice.confidences.tolist(), strict=True) if c == c},
        "valid_error": choice.error,
        "valid_limit": choice.limit,
        "teacher_accuracy": float((valid.classes == y.numpy()).mean()),
        "temperatures": temperatures,
    }
    return PseudoLabels(unlabelled_N[choice.rows], names, unlabelled.probabilities[choice.rows], metadata)
