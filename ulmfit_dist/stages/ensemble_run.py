"""Ensemble of runs as a run directory of its own: temperatures, the vote of the linear model, and the figures of the mean.

It is made when all members are trained, from the predictions that each has written, so it takes seconds. What is chosen
(temperatures, the linear model's vote) is chosen on validation documents; the test split is scored once, at the end.
`ensemble.json` is written last: a start that is killed before makes the ensemble again, with the same result. Trade-off: it
cannot be made before the last member is trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.prediction_table import PREDICTIONS
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed import signals
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import FAILED, RESUMABLE, ResumableInterrupt
from ulmfit_dist.models.bundle import bundle_digest
from ulmfit_dist.models.ensemble_file import ASKED, EnsembleFile, EnsembleMember, is_ensemble, read_ensemble
from ulmfit_dist.report.paired_runs import shown
from ulmfit_dist.stages.ensemble_members import (
    Members,
    linear_answers,
    open_members,
    recorded_or_computed,
    result_of,
    scale_members,
)
from ulmfit_dist.stages.evaluate_ensemble import (
    Answers,
    describe_ensemble,
    single_numbers,
)
from ulmfit_dist.stages.final_scores import is_short, write_predictions
from ulmfit_dist.stages.run import report
from ulmfit_dist.stages.voters import LINEAR, make_voters, mean_of, select_voters
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


def make_ensemble(
    kind: str, config: Config, configs: Sequence[Config], store: TokenStore, runtime: Runtime, fresh: bool = False
) -> dict[str, Any]:
    """Make the ensemble of trained runs in `runs/<name>`, unless it is there, and print its figures. Collective.

    Args:
        kind: as `EnsembleFile.kind`.
        config: config of the ensemble, which names the run directory.
        configs: configs of the members.
        fresh: the trackers get a new run.

    Returns:
        The figures of the members, the linear model and the mean, as `evaluate_ensemble` returns them with a baseline, with
        `linear_votes` and `selection`, what that was decided by.
    """
    with runtime.fail_together():
        tracker = Tracker(config, runtime)
    try:
        with runtime.fail_together():
            tracker.lock()
            tracker.fresh = fresh
            members = open_members(kind, configs, store)
            identity = _identity(config, members) if runtime.is_main else ""
            saved = _saved_result(config.run_dir, identity) if runtime.is_main else None
        identity, result = runtime.broadcast_object((identity, saved))
        if result is None:
            result = _make(members, config, identity, runtime, tracker)
        lines = report(config.run_dir) if runtime.is_main else []
    except ResumableInterrupt:
        with signals.saved():
            tracker.close(RESUMABLE)
        raise
    except BaseException:
        tracker.close(FAILED)
        raise
    lines += tracker.close()
    runtime.print("\n".join(["", f"{config.name}: {describe_votes(result)}", *describe_ensemble(result), "", *lines]))
    return result


def describe_votes(result: Mapping[str, Any]) -> str:
    """Return a sentence about the members of an ensemble and the vote of the linear model."""
    number = len(result["members"])
    models = f"mean of {number} classifier{'s' if number > 1 else ''}"
    if "baseline" not in result:
        return f"{models}, without a linear model"
    gain, error = result["selection"]["gain"], result["selection"]["standard_error"]
    change = (
        f"it lowers the loss of the mean on valid by {shown(gain)}" if gain > 0 else "it does not lower the loss on valid"
    )
    reason = f"{change} (standard error {shown(error)})" if error is not None else f"{change}, of a single document"
    return f"{models}{' and the linear model' if result['linear_votes'] else ', without the linear model'}: {reason}"


def _make(members: Members, config: Config, identity: str, runtime: Runtime, tracker: Tracker) -> dict[str, Any]:
    """Compute, choose, score and write. Collective."""
    tracker.start_ensemble()
    classifiers = [
        recorded_or_computed(member, exported, members, number, runtime)
        for number, (member, exported) in enumerate(zip(members.configs, members.bundles, strict=True))
    ]
    linear, linear_answers, metadata = _fit_linear(members, config.run_dir, runtime)
    temperatures, linear_temperatures, scaled = scale_members(members, classifiers, linear_answers, runtime)
    voters = make_voters(members.documents, *scaled)
    votes, selection = runtime.broadcast_object(select_voters(members.documents, voters, members.store, runtime))
    votes = votes or (members.documents.kind == ASKED and LINEAR in voters)
    result = result_of(members, (classifiers, linear_answers), voters, votes, runtime)
    for figures, temperature in zip(result["members"], temperatures, strict=True):
        figures["temperature"] = temperature
    if linear_answers:
        one = linear_temperatures[0] if len(linear_temperatures) == 1 else None
        result["baseline"] |= {**metadata, "temperature": one}
    result |= {"linear_votes": votes, "selection": selection}
    saved = [
        EnsembleMember(
            run=f"../{member.name}",
            digest=bundle_digest(exported.folder),
            temperature=temperature,
            linear=folder,
            linear_temperature=linear_temperature if folder is not None else None,
        )
        for member, exported, temperature, folder, linear_temperature in zip(
            members.configs,
            members.bundles,
            temperatures,
            _padded(linear, len(temperatures)),
            _padded(linear_temperatures, len(temperatures)),
            strict=True,
        )
    ]
    answers = mean_of({name: part for name, part in voters.items() if votes or name != LINEAR})
    with runtime.fail_together():
        if runtime.is_main:
            _write(members, config, result, answers, tracker)
            EnsembleFile(members.documents.kind, identity, votes, saved, selection).write(config.run_dir)
    return result


def _fit_linear(members: Members, run: Path, runtime: Runtime) -> tuple[list[str], list[Answers], dict[str, Any]]:
    """Fit a linear model to the training documents of each member, one if they are the same. Collective.

    Returns:
        Folders of the models, relative to `run`, their answers, and metadata of the first; empty without a baseline.
    """
    with runtime.fail_together():
        if runtime.is_main:
            for folder in (run / "linear", *run.glob("linear-*")):
                shutil.rmtree(folder, ignore_errors=True)
    if not members.documents.config.classifier.baseline:
        return [], [], {}
    from ulmfit_dist.stages.baseline import fit_linear_model  # scikit-learn takes a second to import

    is_one = members.documents.kind != "folds"
    folders, answers, first = list[str](), list[Answers](), dict[str, Any]()
    for number, config in enumerate(members.configs[:1] if is_one else members.configs):
        model, metadata = fit_linear_model(config, runtime, members.store)
        first = first or {name: metadata[name] for name in ("features", "C", "num_features")}
        folders.append("linear" if is_one else f"linear-{number}")
        sides = {"valid": members.documents.valid[number], "test": members.documents.test}
        with runtime.fail_together():
            if model is not None:
                model.save(run / folders[-1])
        answers.append(linear_answers(model, sides, members.store, runtime))
    return folders, answers, first


def _write(members: Members, config: Config, result: dict[str, Any], answers: Answers, tracker: Tracker) -> None:
    """Write predictions and figures. Only rank 0 calls it."""
    exported = replace(members.bundles[0], folder=config.run_dir)
    sides = members.documents.sides
    rows = {side: (documents_N, answers[side].cpu().numpy()) for side, documents_N in sides.items()}
    write_predictions(config.run_dir / PREDICTIONS, exported, members.store, rows)
    mean = result["ensemble"]
    figures = single_numbers({name: value for name, value in mean.items() if name != "test"})
    if "test" in mean:
        figures["test"] = {name: value for name, value in mean["test"].items() if is_short(name, value)}
    tables = {}
    if "confusion_matrix" in mean:
        tables = {"labels": exported.labels, "confusion_matrix": mean["confusion_matrix"], "most_wrong": []}
    summaries = [json.loads((member.run_dir / "summary.json").read_text(encoding="utf-8")) for member in members.configs]
    seconds: dict[str, float] = {}
    for summary in summaries:
        for stage, value in summary.get("seconds", {}).items():
            seconds[stage] = round(seconds.get(stage, 0.0) + value, 1)
    tracker.finish_ensemble(figures, {**result, "ensemble": single_numbers(mean)}, tables, seconds)


def _saved_result(run: Path, identity: str) -> dict[str, Any] | None:
    """Return the figures of the ensemble in a run directory if it is this one, else None."""
    if not is_ensemble(run) or not (run / PREDICTIONS).is_file() or read_ensemble(run).identity != identity:
        return None
    with suppress(OSError, ValueError):
        result: dict[str, Any] | None = json.loads((run / "summary.json").read_text(encoding="utf-8")).get("ensemble")
        return result
    return None


def _identity(config: Config, members: Members) -> str:
    """Return a digest of everything that the ensemble depends on."""
    digest = xxhash.xxh3_64(members.store.fingerprint.encode())
    for exported in members.bundles:
        digest.update(bundle_digest(exported.folder).encode())
    for part in (*members.documents.valid, members.documents.test):
        digest.update(part.tobytes() + b"|")
    settings = config.classifier
    linear = (settings.baseline, settings.baseline_features)
    digest.update(repr((members.documents.kind, *linear, settings.threshold, config.name, config.seed)).encode())
    return digest.hexdigest()


def _padded(values: Sequence[Any], length: int) -> list[Any]:
    return [*values, *[None] * (length - len(values))]
