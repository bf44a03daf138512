"""Cross-validation: a run for each fold of the documents, and what they come to on average.

Each fold is a run of its own, `<name>-fold-<k>`, so it is killed, resumed, reported and tracked like any other, and folds
that other jobs have trained are done. A language model that is validated on a share of all texts (`lm.valid_pct`) is the
same in all folds: it is trained in the first, and copied to the others.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.classifier import check_classifier
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.run import run
from ulmfit_dist.utils.files import write_json
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)

Figures = dict[str, dict[str, dict[str, Any]]]
"""By stage and metric: mean, std, and the value of each fold."""


def cross_validate(config: Config, runtime: Runtime, fresh: bool = False) -> Figures:
    """Train all folds that are not done, then write `cross_validation.json` to `runs/<name>/`.

    Args:
        fresh: train all of them again.

    Returns:
        Mean and sample standard deviation of each metric; on rank 0, nothing on others.

    Raises:
        UserError: data.folds is not set; what one of the runs refuses.
        Interrupted: a signal has asked to stop; all is saved.
    """
    configs = configs_of_folds(config)
    store = prepare(config, runtime)
    with runtime.fail_together():
        for each in configs:
            check_classifier(each, runtime, store)
    is_shared = config.lm.valid_pct is not None
    for number, each in enumerate(configs):
        if is_shared and number:
            with runtime.fail_together():
                if runtime.is_main:
                    copy_language_model(configs[0].run_dir, each, fresh)
        logger.info(f"\n{each.name}: fold {number} of {len(configs)}")
        run(each, runtime, fresh and not (is_shared and number))
    found: Figures = {}
    with runtime.fail_together():
        if runtime.is_main:
            found = average([_summary(each.run_dir) for each in configs])
            config.run_dir.mkdir(parents=True, exist_ok=True)
            write_json(config.run_dir / "cross_validation.json", {"folds": [each.name for each in configs], **found})
    return found


def configs_of_folds(config: Config) -> list[Config]:
    """A config for each fold: its own name, and one group in W&B. Raises UserError where there are no folds."""
    if config.data.folds is None:
        raise UserError("data.folds is not set: say into how many parts the documents are cut, such as data.folds=5")
    group = config.tracking.group or os.environ.get("WANDB_RUN_GROUP") or config.name
    tracking = replace(config.tracking, group=group)
    return [
        replace(config, name=f"{config.name}-fold-{fold}", data=replace(config.data, fold=fold), tracking=tracking)
        for fold in range(config.data.folds)
    ]


def average(summaries: list[Mapping[str, Any]]) -> Figures:
    """Mean and sample standard deviation of the metrics that all summaries have."""
    found: Figures = {}
    each = [{**summary, "baseline": summary.get("baseline", {}).get("valid", {})} for summary in summaries]
    for stage in ("lm", "baseline", "classifier"):
        names = [name for name in each[0].get(stage, {}) if not name.endswith("_per_second")]
        for name in names:
            values = [figures.get(stage, {}).get(name) for figures in each]
            if None not in values:
                spread = statistics.stdev(values)
                found.setdefault(stage, {})[name] = {"mean": statistics.fmean(values), "std": spread, "folds": values}
    return found


def describe_figures(found: Figures) -> Iterator[str]:
    """A line per metric, as `classifier  accuracy  0.9541 ± 0.0063  (0.9600 0.9478 ...)`."""
    for stage, metrics in found.items():
        for name, figures in metrics.items():
            each = " ".join(f"{value:.4f}" for value in figures["folds"])
            yield f"{stage:<12}{name:<14}{figures['mean']:.4f} ± {figures['std']:.4f}  ({each})"


def copy_language_model(first: Path, config: Config, fresh: bool) -> None:
    """Give a run the language model of the first fold's, unless it has one.

    Args:
        first: directory of the first fold's run.
        fresh: whether another one than the first fold's is to go, and the classifier on it.
    """
    source, target = first / "lm", config.run_dir / "lm"
    is_same = target.is_dir() and (target / "training.json").read_bytes() == (source / "training.json").read_bytes()
    if is_same or (target.is_dir() and not fresh):
        return
    temporary = target.with_name(".lm.tmp")
    for old in (temporary, target, config.run_dir / "classifier", config.checkpoints_dir):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(source, temporary)
    temporary.replace(target)


def _summary(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return summary
