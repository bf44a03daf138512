"""All stages, one after the other; what is done already is not done again."""

from __future__ import annotations

import time
from functools import reduce
from pathlib import Path
from typing import Any

from ulmfit_dist.compose import to_dict
from ulmfit_dist.config import Config
from ulmfit_dist.data.store import TokenStore
from ulmfit_dist.errors import UserError
from ulmfit_dist.model.export import WEIGHTS, read_exported
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.stages.classifier import classifier_loaders, train_classifier
from ulmfit_dist.stages.lm import lm_loaders, train_lm
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.training.tracking import Tracker

LM_KEYS = ("seed", "tokenizer", "model", "lm", "data.valid_pct")
DECISIVE_KEYS = {"lm": LM_KEYS, "classifier": (*LM_KEYS, "classifier")}
"""The keys that a stage's result depends on, beside the texts."""


def run(config: Config, runtime: Runtime, fresh: bool = False) -> None:
    """Prepare, train the language model, train the classifier; all inputs are checked before the first step.

    Args:
        fresh: train again what is done.

    Raises:
        UserError: wrong input, or a finished stage that was trained with another config.
    """
    with runtime.together():
        tracker = Tracker(config, runtime)
    started = time.perf_counter()
    store = prepare(config, runtime)
    tracker.finish_stage("prepare", time.perf_counter() - started)
    with runtime.together():
        lm_done = not fresh and is_done(config, "lm", store)
        done = {"lm": lm_done, "classifier": lm_done and is_done(config, "classifier", store)}
    done = runtime.from_main(done)
    with runtime.together():
        lm_loaders(config, runtime, store)
        classifier_loaders(config, runtime, store)
    try:
        for stage, train in (("lm", train_lm), ("classifier", train_classifier)):
            if done[stage]:
                runtime.print(f"{stage}: done already, in {config.run_dir / stage} (--fresh trains it again)")
            else:
                train(config, runtime, store, tracker)
    except BaseException:
        tracker.close(exit_code=1)
        raise
    tracker.close()
    runtime.print(f"done: {config.run_dir}")


def run_stage(config: Config, runtime: Runtime, stage: str) -> None:
    """One stage alone, trained anew."""
    with runtime.together():
        tracker = Tracker(config, runtime)
    store = prepare(config, runtime)
    with runtime.together():
        if stage == "classifier":
            is_done(config, "lm", store)
    try:
        {"lm": train_lm, "classifier": train_classifier}[stage](config, runtime, store, tracker)
    except BaseException:
        tracker.close(exit_code=1)
        raise
    tracker.close()


def is_done(config: Config, stage: str, store: TokenStore) -> bool:
    """Whether the run has this stage's model. Raises UserError if it was trained with another config or other data."""
    folder = config.run_dir / stage
    if not (folder / WEIGHTS).is_file():
        return False
    exported = read_exported(folder)
    differing = _differing_keys(config, exported.config, DECISIVE_KEYS[stage])
    if exported.training["data_fingerprint"] != store.fingerprint:
        differing.append("data")
    if differing:
        raise UserError(
            f"{folder} was trained with another {', '.join(differing)}: train again with --fresh, or give the run "
            f"another name, such as name={config.name}-2"
        )
    return True


def _differing_keys(now: Config, then: Config, keys: tuple[str, ...]) -> list[str]:
    new, old = to_dict(now), to_dict(then)
    return [name for key in keys for name in _differing(key, _at(new, key), _at(old, key))]


def _at(config: dict[str, Any], key: str) -> Any:
    return reduce(lambda section, name: section[name], key.split("."), config)


def _differing(key: str, new: Any, old: Any) -> list[str]:
    if isinstance(new, dict) and isinstance(old, dict):
        return [name for part in new for name in _differing(f"{key}.{part}", new[part], old.get(part))]
    return [] if new == old else [f"{key} (now {new}, then {old})"]


def model_folder(run: Path, stage: str) -> Path:
    """The export of a stage, given a run directory or the export itself. Raises UserError where there is neither."""
    folder = find_model(run, stage)
    if folder is None:
        raise UserError(f"{run}: no {stage} model here: give a run directory that has one, or an exported model's folder")
    return folder


def find_model(run: Path, stage: str) -> Path | None:
    """As `model_folder`, None where there is none."""
    for folder in (run / stage, run):
        if (folder / WEIGHTS).is_file() and (stage == "lm") is not (folder / "labels.json").is_file():
            return folder
    return None
