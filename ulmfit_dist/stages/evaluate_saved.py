"""Evaluation of the ensemble in a run directory, from the models of its members and its saved linear models.

Of folds, each validation document is answered by the models that have not read it, as when the ensemble was made. Trade-off:
temperatures and the linear model's vote are those of `ensemble.json`; nothing is chosen again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.answers import compute_answers
from ulmfit_dist.inference.temperature import scale_answers
from ulmfit_dist.models.ensemble_file import (
    EnsembleFile,
    path_of_member,
    read_ensemble,
    read_ensemble_members,
    read_linear_models,
)
from ulmfit_dist.models.linear import LinearModel
from ulmfit_dist.stages.ensemble_members import Members, linear_answers, members_of, result_of
from ulmfit_dist.stages.evaluate import check_functions
from ulmfit_dist.stages.evaluate_ensemble import Answers
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.voters import make_voters


def evaluate_saved_ensemble(
    run: Path, runtime: Runtime, trust_remote_code: bool = False, quantize: str | None = None
) -> dict[str, Any]:
    """Return the figures of an ensemble run: of its members, its linear model and their mean. Collective.

    Args:
        run: run directory with `ensemble.json`.
        trust_remote_code: call user-defined functions of the members' configs.
        quantize: as for `TextClassifier`, for the members.

    Returns:
        As `evaluate_ensemble` with a baseline; `baseline` is missing if the ensemble has no linear model. Folds have no
        figures on test of their own.

    Raises:
        UserError: a member or the token store is missing, or a member or the texts have changed.
    """
    with runtime.fail_together():
        file = read_ensemble(run)
        bundles = read_ensemble_members(run, file)
        linear = read_linear_models(run, file, bundles)
        for exported in bundles:
            check_functions(exported, trust_remote_code)
    store = prepare(bundles[0].config, runtime)
    with runtime.fail_together():
        members = members_of(file.kind, [exported.config for exported in bundles], bundles, store)
    classifiers: list[Answers] = []
    for exported, valid_N in zip(bundles, members.documents.valid, strict=True):
        sides = {"valid": valid_N, **({"test": members.documents.test} if len(members.documents.test) else {})}
        classifiers.append(
            {
                side: compute_answers(exported, store, documents_N, runtime, trust_remote_code, quantize)
                for side, documents_N in sides.items()
            }
        )
    linear_parts = _linear_parts(members, linear, runtime)
    voters = make_voters(members.documents, *_scaled(file, classifiers, linear_parts, members))
    result = result_of(members, (classifiers, linear_parts), voters, file.linear_votes, runtime)
    for figures, saved in zip(result["members"], file.members, strict=True):
        figures |= {"run": str(path_of_member(run, saved)), "temperature": saved.temperature}
    if linear:
        of_linear = [saved.linear_temperature for saved in file.members if saved.linear is not None]
        result["baseline"] |= {"temperature": of_linear[0] if len(of_linear) == 1 else None}
    return result


def evaluate_ensemble_run(
    run: Path, runtime: Runtime, trust_remote_code: bool = False, split: str = "valid", quantize: str | None = None
) -> dict[str, Any]:
    """Return the figures of the mean on a split, as `evaluate` returns them for a classifier. Collective.

    Raises:
        UserError: as `evaluate_saved_ensemble`; the texts have no labelled test split.
    """
    figures: dict[str, Any] = evaluate_saved_ensemble(run, runtime, trust_remote_code, quantize)["ensemble"]
    test: dict[str, Any] | None = figures.pop("test", None)
    if split == "valid":
        return figures
    if test is None:
        raise UserError(f"{run}: the texts have no labelled test split: evaluate new texts with --data FILE")
    return test


def _linear_parts(members: Members, models: list[LinearModel], runtime: Runtime) -> list[Answers]:
    """Return the answers of the linear models to the documents of their members. Collective."""
    parts = []
    for model, valid_N in zip(models, members.documents.valid, strict=False):
        sides = {"valid": valid_N, "test": members.documents.test}
        parts.append(linear_answers(model if runtime.is_main else None, sides, members.store, runtime))
    return parts


def _scaled(
    file: EnsembleFile, classifiers: list[Answers], linear: list[Answers], members: Members
) -> tuple[list[Answers], list[Answers]]:
    """Return the answers at the temperatures of the file."""
    target = members.documents.config.classifier.target

    def at(answers: Answers, temperature: float | None) -> Answers:
        return {
            side: part if temperature is None else scale_answers(part, temperature, target) for side, part in answers.items()
        }

    of_linear = [saved.linear_temperature for saved in file.members if saved.linear is not None]
    return (
        [at(part, saved.temperature) for part, saved in zip(classifiers, file.members, strict=True)],
        [at(part, temperature) for part, temperature in zip(linear, of_linear, strict=True)],
    )
