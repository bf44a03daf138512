"""Trained members of an ensemble run: their documents, answers, temperatures and figures.

Answers that a member's run has written are read again instead of computed, if they are of the same texts. Trade-off: all
members must have the same token store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.prediction_table import PREDICTIONS, digest_of_texts, read_predictions
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.inference.answers import compute_answers
from ulmfit_dist.models.bundle import ModelBundle, read_bundle
from ulmfit_dist.models.linear import LinearModel
from ulmfit_dist.stages.evaluate import check_store
from ulmfit_dist.stages.evaluate_ensemble import Answers, at_temperatures, figures_by_split, single_numbers
from ulmfit_dist.stages.voters import LINEAR, Documents, make_voters, mean_of


@dataclass(frozen=True)
class Members:
    """The trained members of an ensemble run.

    Attributes:
        configs: their configs.
        bundles: their exported classifiers.
        store: their token store.
        documents: what they are measured on.
    """

    configs: list[Config]
    bundles: list[ModelBundle]
    store: TokenStore
    documents: Documents


def open_members(kind: str, configs: Sequence[Config], store: TokenStore) -> Members:
    """Return the trained members. Raises UserError if one has no classifier, or other texts or documents than the first."""
    return members_of(kind, configs, [read_bundle(config.run_dir / "classifier") for config in configs], store)


def members_of(kind: str, configs: Sequence[Config], bundles: Sequence[ModelBundle], store: TokenStore) -> Members:
    """As `open_members`, given the exported classifiers."""
    for exported in bundles:
        check_store(exported, store)
    splits = [split_documents(store, config) for config in configs]
    valid = [split.classifier_valid for split in splits]
    names = [config.name.rpartition("-")[2] if kind == "directions" else config.name for config in configs]
    return Members(list(configs), list(bundles), store, Documents(kind, names, configs[0], valid, splits[0].test))


def recorded_or_computed(config: Config, exported: ModelBundle, members: Members, number: int, runtime: Runtime) -> Answers:
    """Return the answers of a member to its documents: those that its run has written, others computed. Collective."""
    sides = {"valid": members.documents.valid[number], "test": members.documents.test}
    recorded: dict[str, np.ndarray] = {}
    with runtime.fail_together():
        if runtime.is_main and (config.run_dir / PREDICTIONS).is_file():  # a fold of texts with a test split has none
            for side, answers in read_predictions(config.run_dir).splits.items():
                hashes_N = members.store.text_hashes[sides[side]]
                if answers.texts == digest_of_texts(hashes_N) and len(answers.y) == len(hashes_N):
                    recorded[side] = answers.answers
    recorded = runtime.broadcast_object(recorded)
    return {
        side: torch.from_numpy(recorded[side]).to(runtime.device)
        if side in recorded
        else compute_answers(exported, members.store, documents_N, runtime, trust=True)
        for side, documents_N in sides.items()
        if len(documents_N)
    }


def linear_answers(
    model: LinearModel | None, sides: Mapping[str, np.ndarray], store: TokenStore, runtime: Runtime
) -> Answers:
    """Return the answers of a linear model on rank 0 to documents of a store, on every rank. Collective."""
    answers: dict[str, np.ndarray] = {}
    with runtime.fail_together():
        if model is not None:
            answers = {
                side: model.answers([store.document(i) for i in documents_N.tolist()])
                for side, documents_N in sides.items()
                if len(documents_N)
            }
    return {side: torch.from_numpy(part).to(runtime.device) for side, part in runtime.broadcast_object(answers).items()}


def scale_members(
    members: Members, classifiers: Sequence[Answers], linear: Sequence[Answers], runtime: Runtime
) -> tuple[list[float | None], list[float | None], tuple[list[Answers], list[Answers]]]:
    """Return temperatures of classifiers and linear models, each fitted to its own validation documents, and the scaled
    answers of both. Collective."""
    scaled: tuple[list[Answers], list[Answers]] = ([], [])
    temperatures: tuple[list[float | None], list[float | None]] = ([], [])
    for models, of_kind, of_models in zip((classifiers, linear), temperatures, scaled, strict=True):
        for valid_N, answers, config in zip(members.documents.valid, models, members.configs, strict=False):
            (temperature,), (part,) = at_temperatures([answers], valid_N, config, members.store, runtime)
            of_kind.append(temperature)
            of_models.append(part)
    return *temperatures, scaled


def result_of(
    members: Members,
    parts: tuple[Sequence[Answers], Sequence[Answers]],
    voters: Mapping[str, Answers],
    votes: bool,
    runtime: Runtime,
) -> dict[str, Any]:
    """Return the figures of members, linear model and ensemble, as `evaluate_ensemble` returns them. Collective.

    Args:
        parts: unscaled answers of the classifiers, and of the linear models.
    """
    documents, config, store = members.documents, members.documents.config, members.store
    classifiers, linear = parts
    result: dict[str, Any] = {"members": []}
    for member, valid_N, answers in zip(members.configs, documents.valid, classifiers, strict=True):
        sides = {"valid": valid_N} if documents.kind == "folds" else documents.sides
        part = {side: answers[side] for side in sides}
        figures = figures_by_split(part, sides, member, store, runtime)
        result["members"].append({"run": str(member.run_dir)} | single_numbers(figures))
    if linear:
        unscaled = make_voters(documents, classifiers, linear)[LINEAR]
        result["baseline"] = single_numbers(figures_by_split(unscaled, documents.sides, config, store, runtime))
    mean = mean_of({name: answers for name, answers in voters.items() if votes or name != LINEAR})
    return result | {"ensemble": figures_by_split(mean, documents.sides, config, store, runtime)}
