"""Cross-validation: one run per fold, and the mean of their metrics.

Each fold is a separate run, `<name>-fold-<k>`, so it is resumed, reported and tracked like any other, and other jobs can
train folds. If `lm.valid_pct` is set, the language model is the same in all folds: it is trained in the first one and
copied. Trade-off: that model has read the texts, not the labels, of every fold's validation documents.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.ensemble_file import is_ensemble
from ulmfit_dist.stages.classifier import check_classifier
from ulmfit_dist.stages.ensemble_run import make_ensemble
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.run import run
from ulmfit_dist.stages.run_directories import check_free_for_ensemble, check_free_for_training
from ulmfit_dist.stages.sub_runs import grouped, sub_run
from ulmfit_dist.tracking.run_lock import RunLock
from ulmfit_dist.utils.files import write_json
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

KIND = "folds"
Figures = dict[str, dict[str, dict[str, Any]]]
"""By stage and metric: mean, std, and the value of each fold."""


def cross_validate(config: Config, runtime: Runtime, fresh: bool = False, ensemble: bool = False) -> Figures:
    """Train all unfinished folds, then write `cross_validation.json` to `runs/<name>/`.

    Args:
        fresh: train all folds again.
        ensemble: make the classifiers of the folds an ensemble in `runs/<name>`, scored once on the test split.

    Returns:
        Mean and sample standard deviation of each metric on rank 0; empty on other ranks.

    Raises:
        UserError: data.folds is not set, or the input of a run is invalid.
        ResumableInterrupt: a signal has requested a stop, and everything is saved.
    """
    configs = configs_of_folds(config)
    with runtime.fail_together():
        if ensemble or is_ensemble(config.run_dir):
            check_free_for_ensemble(config, KIND)
        for fold in configs:
            check_free_for_training(fold)
    store = prepare(config, runtime)
    with runtime.fail_together():
        for fold in configs:
            check_classifier(fold, runtime, store)
    is_shared = "lm" in config.stages and config.lm.valid_pct is not None
    for number, fold in enumerate(configs):
        if is_shared and number:
            with runtime.fail_together():
                if runtime.is_main:
                    copy_language_model(configs[0].run_dir, fold, fresh)
        logger.info(f"\n{fold.name}: fold {number} of {len(configs)}")
        run(fold, runtime, fresh and not (is_shared and number))
    averages: Figures = {}
    with runtime.fail_together():
        if runtime.is_main:
            averages = average([_summary(fold.run_dir) for fold in configs])
            config.run_dir.mkdir(parents=True, exist_ok=True)
            write_json(config.run_dir / "cross_validation.json", {"folds": [fold.name for fold in configs], **averages})
    if ensemble:
        make_ensemble(KIND, grouped(config), configs, store, runtime, fresh)
    return averages


def configs_of_folds(config: Config) -> list[Config]:
    """Return a config per fold, with its own name and a common W&B group. Raises UserError if data.folds is not set."""
    if config.data.folds is None:
        raise UserError("data.folds is not set: give the number of folds, such as data.folds=5")
    return [sub_run(config, f"fold-{fold}", data=replace(config.data, fold=fold)) for fold in range(config.data.folds)]


def average(summaries: list[Mapping[str, Any]]) -> Figures:
    """Return mean and sample standard deviation of the metrics that all summaries have."""
    averages: Figures = {}
    folds = [{**summary, "baseline": summary.get("baseline", {}).get("valid", {})} for summary in summaries]
    for stage in ("lm", "baseline", "classifier"):
        names = [name for name in folds[0].get(stage, {}) if not name.endswith("_per_second")]
        for name in names:
            values = [figures.get(stage, {}).get(name) for figures in folds]
            if None not in values:
                spread = statistics.stdev(values)
                averages.setdefault(stage, {})[name] = {"mean": statistics.fmean(values), "std": spread, "folds": values}
    return averages


def describe_figures(averages: Figures) -> Iterator[str]:
    """Yield a line per metric, such as `classifier  accuracy  0.9541 ± 0.0063  (0.9600 0.9478 ...)`."""
    for stage, metrics in averages.items():
        for name, figures in metrics.items():
            folds = " ".join(f"{value:.4f}" for value in figures["folds"])
            yield f"{stage:<12}{name:<14}{figures['mean']:.4f} ± {figures['std']:.4f}  ({folds})"


def copy_language_model(first: Path, config: Config, fresh: bool) -> None:
    """Copy the language model of the first fold to another fold, unless it has one.

    Args:
        first: run directory of the first fold.
        config: config of the other fold.
        fresh: replace a different language model, and remove the classifier trained on it.

    Raises:
        UserError: another process trains the other fold.
    """
    source, target = first / "lm", config.run_dir / "lm"
    is_same = target.is_dir() and (target / "training.json").read_bytes() == (source / "training.json").read_bytes()
    if is_same or (target.is_dir() and not fresh):
        return
    with RunLock(config):  # another process may train this fold
        temporary = target.with_name(".lm.tmp")
        for old in (temporary, target, config.run_dir / "classifier", config.checkpoints_dir):
            shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(source, temporary)
        temporary.replace(target)


def _summary(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return summary
