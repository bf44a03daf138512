"""Self-training: rounds of classifiers that also train on labels which a teacher gives to unlabelled documents.

Round 0 is an ordinary run, `<name>-round-0`. In round k a teacher (`teacher.py`) labels the documents that have no label;
the most confident labels (`pseudo_label_choice.py`) go to `pseudo_labels.parquet` in the run directory of the round,
`<name>-round-<k>`, whose classifier starts again from the language model of round 0. The rounds end when the metric on
valid no longer improves. The test split is scored once, with the classifier of the best round (`self_train_result.py`).

Each round is a run, so it is resumed, reported and tracked like any other, and computes the same on any number of ranks.
Pseudo-labels that exist are read, not made again. Trade-off: the best round is chosen on valid, which with few documents
is mostly chance, so the metric on valid is too high; that on test is not.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.pseudo_labels import PSEUDO_LABELS, PseudoLabels, read_pseudo_labels
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import ModelBundle
from ulmfit_dist.stages.baseline_figures import main_metric
from ulmfit_dist.stages.classifier import check_classifier
from ulmfit_dist.stages.cross_validate import copy_language_model
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.run import run
from ulmfit_dist.stages.run_directories import SELF_TRAINING, check_free_for_self_training, check_free_for_training
from ulmfit_dist.stages.self_train_result import describe_rounds, finish_self_training
from ulmfit_dist.stages.teacher import identity_of, make_pseudo_labels, read_teacher, unlabelled_documents
from ulmfit_dist.tracking.run_lock import RunLock
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.utils.files import make_folder, write_json
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

ROUND_KEYS = ("share", "confidences", "valid_error", "valid_limit", "teacher_accuracy", "temperatures")
"""Metadata of pseudo-labels that the result of a round has, too."""
KEPT_NAMES = {"models": "teacher model", "fingerprint": "data", "valid": "valid split"}
"""Names of what pseudo-labels depend on besides keys of the config."""
Result = dict[str, Any]


def self_train(config: Config, runtime: Runtime, fresh: bool = False, trust_remote_code: bool = False) -> Result:
    """Train all unfinished rounds, then score the best one, in `runs/<name>/`. Collective.

    Args:
        fresh: train all rounds again.
        trust_remote_code: call user-defined functions of the configs of `self_training.voters`.

    Returns:
        On rank 0 the content of `self_training.json`: `metric`, `best` (number of the round), `end` (why there are no more),
        and `rounds`, each with its figures; empty on other ranks.

    Raises:
        UserError: a target that is not category, no unlabelled document, another wrong input, or a changed config.
        ResumableInterrupt: a signal has requested a stop, and everything is saved.
    """
    with runtime.fail_together():
        check_self_training(config)
        check_free_for_self_training(config)
        for number in range(config.self_training.rounds + 1):
            check_free_for_training(config_of_round(config, number))
        make_folder(config.run_dir, "runs_dir")
    with _locked(config, runtime):
        if fresh:
            _start_over(config, runtime)
        _mark(config, runtime)
        store = prepare(config, runtime)
        with runtime.fail_together():
            unlabelled_documents(store, config)
            check_classifier(config_of_round(config, 0), runtime, store)
        configs, result = _train_rounds(config, runtime, store, trust_remote_code)
    best = configs[result["best"]]
    finish_self_training(config, best, configs[0], runtime, store)
    if runtime.is_main:
        for line in describe_rounds(result):
            logger.info(line)
    return result if runtime.is_main else {}


def check_self_training(config: Config) -> None:
    """Raise UserError for a config that self-training does not support."""
    target = config.classifier.target
    if target != "category":
        raise UserError(
            f"self-train needs classifier.target=category, not {target}: a pseudo-label is one class; train with 'run'"
        )
    if config.data.folds is not None:
        raise UserError(f"data.folds={config.data.folds}: self-train has no folds: set it to null")
    if config.classifier.pseudo_labels is not None or config.classifier.repeat_labelled != 1:
        raise UserError("classifier.pseudo_labels and repeat_labelled are set by self-train: leave them out")


def config_of_round(config: Config, number: int) -> Config:
    """Return the config of a round before it has pseudo-labels: its name, and the W&B group of all rounds."""
    group = config.tracking.group or os.environ.get("WANDB_RUN_GROUP") or config.name
    return replace(
        config,
        name=f"{config.name}-round-{number}",
        tracking=replace(config.tracking, group=group),
        classifier=replace(config.classifier, baseline=False),  # measured once, at the end
    )


def config_of_student(config: Config, number: int, num_labelled: int, num_pseudo: int) -> Config:
    """Return the config of a round that trains on the pseudo-labels in its run directory.

    Args:
        num_labelled, num_pseudo: documents with a label of their own, and with a pseudo-label.
    """
    student, settings = config_of_round(config, number), config.self_training
    share = settings.labelled_share
    repeats = max(1, math.ceil(share * num_pseudo / ((1 - share) * num_labelled)))
    phases = settings.phases or config.classifier.phases
    path = str(student.run_dir / PSEUDO_LABELS)
    classifier = replace(student.classifier, pseudo_labels=path, repeat_labelled=repeats, phases=phases)
    return replace(student, classifier=classifier)


def _train_rounds(
    config: Config, runtime: Runtime, store: TokenStore, trust_remote_code: bool
) -> tuple[list[Config], Result]:
    """Train the rounds until one does not improve; returns their configs and results. Collective; equal on every rank."""
    configs = [config_of_round(config, 0)]
    rounds = [_train_round(configs[0], runtime, None)]
    metric = main_metric(rounds[0]["valid"])
    best, previous, end = 0, "", f"self_training.rounds={config.self_training.rounds} are complete"
    for number in range(1, config.self_training.rounds + 1):
        logger.info(f"\n{config.name}: round {number}")
        members = read_teacher(config, configs[-1].run_dir, runtime, trust_remote_code)
        pseudo = _pseudo_labels(config, number, members, (runtime, store, trust_remote_code))
        if not len(pseudo.documents) or pseudo.digest == previous:
            kind = "those of the round before" if len(pseudo.documents) else "none"
            end = f"the pseudo-labels of round {number} are {kind}"
            break
        previous = pseudo.digest
        num_labelled = len(split_documents(store, config).classifier_train)
        configs.append(config_of_student(config, number, num_labelled, len(pseudo.documents)))
        with runtime.fail_together():
            if runtime.is_main and "lm" in config.stages:
                copy_language_model(configs[0].run_dir, configs[-1], fresh=False)
        rounds.append(_train_round(configs[-1], runtime, pseudo))
        _write(config, runtime, {"metric": metric, "best": best, "rounds": rounds})
        if rounds[-1]["valid"][metric] <= rounds[best]["valid"][metric]:
            end = f"round {number} does not improve {metric} on valid"
            break
        best = number
    result = {"metric": metric, "best": best, "end": end, "rounds": rounds}
    _write(config, runtime, result)
    return configs, result


def _write(config: Config, runtime: Runtime, result: Result) -> None:
    """Write the results of the rounds so far. Collective."""
    with runtime.fail_together():
        if runtime.is_main:
            write_json(config.run_dir / SELF_TRAINING, {**result, "job": runtime.job})


def _train_round(config: Config, runtime: Runtime, pseudo: PseudoLabels | None) -> Result:
    """Train a round, unless it is complete, and return its result. Collective."""
    run(config, runtime, scores_test=False)
    result: Result = {}
    with runtime.fail_together():
        if runtime.is_main:
            summary = json.loads((config.run_dir / "summary.json").read_text(encoding="utf-8"))
            seconds = summary["seconds"].get("lm", 0) + summary["seconds"]["classifier"]
            valid = {name: value for name, value in summary["classifier"].items() if isinstance(value, float)}
            seconds += pseudo.metadata["seconds"] if pseudo is not None else 0
            result = {"run": config.name, "valid": valid, "seconds": round(seconds, 1)}
            if pseudo is not None:
                result["documents"] = pseudo.counts()
                result |= {key: pseudo.metadata[key] for key in ROUND_KEYS}
                result["repeat_labelled"] = config.classifier.repeat_labelled
    return runtime.broadcast_object(result)


def _pseudo_labels(
    config: Config, number: int, members: list[ModelBundle], tools: tuple[Runtime, TokenStore, bool]
) -> PseudoLabels:
    """Return the pseudo-labels of a round: those in its run directory, or new ones, which are written there. Collective."""
    runtime, store, trust_remote_code = tools
    path = config_of_round(config, number).run_dir / PSEUDO_LABELS
    pseudo: PseudoLabels | None = None
    with runtime.fail_together():
        if runtime.is_main and path.exists():
            pseudo = read_pseudo_labels(path)
            _check_identity(path, pseudo, identity_of(members, config, store), config.name)
    pseudo = runtime.broadcast_object(pseudo)
    if pseudo is not None:
        logger.info(f"pseudo-labels: {len(pseudo.documents):,} documents in {path}")
        return pseudo
    pseudo = make_pseudo_labels(members, config, number, runtime, store, trust_remote_code)
    with runtime.fail_together():
        if runtime.is_main and len(pseudo.documents):
            make_folder(path.parent, "runs_dir")
            pseudo.write(path)
    return pseudo


def _check_identity(path: Path, pseudo: PseudoLabels, identity: dict[str, Any], name: str) -> None:
    """Raise UserError if pseudo-labels were made with another teacher, other settings or other texts."""
    changed = [
        KEPT_NAMES.get(key) or f"{_section_of(key)}.{key} (now {value}, then {pseudo.metadata.get(key)})"
        for key, value in identity.items()
        if key in pseudo.metadata and pseudo.metadata[key] != value
    ]
    if changed:
        raise UserError(
            f"{path} was made with another {', '.join(changed)}: start over with --fresh, or give the run another name, "
            f"such as name={name}-2"
        )


def _section_of(key: str) -> str:
    return "classifier" if key == "baseline_features" else "self_training"


def _start_over(config: Config, runtime: Runtime) -> None:
    """Remove models, checkpoints and pseudo-labels of all rounds, unless a start of this job has done so. Collective."""
    with runtime.fail_together():
        if not runtime.is_main:
            return
        result = config.run_dir / SELF_TRAINING
        if runtime.is_restart and result.is_file() and json.loads(result.read_bytes()).get("job") == runtime.job:
            return
        write_json(result, {"rounds": []})  # without the job: if it is killed now, it starts over again
        for folder in sorted(config.run_dir.parent.glob(f"{config.name}-round-*")):
            if folder.name.removeprefix(f"{config.name}-round-").isdecimal():
                with RunLock(replace(config, name=folder.name)):
                    _remove_round(folder)
        write_json(result, {"job": runtime.job, "rounds": []})


def _remove_round(folder: Path) -> None:
    (folder / PSEUDO_LABELS).unlink(missing_ok=True)
    for part in ("classifier", "lm", "checkpoints"):
        shutil.rmtree(folder / part, ignore_errors=True)


def _mark(config: Config, runtime: Runtime) -> None:
    """Make the run directory that of a self-training, which no training may use, before the first round. Collective."""
    with runtime.fail_together():
        if runtime.is_main and not (config.run_dir / SELF_TRAINING).is_file():
            write_json(config.run_dir / SELF_TRAINING, {"rounds": []})


@contextmanager
def _locked(config: Config, runtime: Runtime) -> Iterator[None]:
    """Lock the run directory of all rounds."""
    with runtime.fail_together():
        tracker = Tracker(config, runtime)
        tracker.lock()
    try:
        yield
    finally:
        tracker.close()
