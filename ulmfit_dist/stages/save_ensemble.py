"""Mean of trained runs, and of the linear model, as a run directory: `ensemble RUN ... --save FOLDER`.

So runs that were trained at different times, such as a self-training and the linear model, label texts as one. Trade-off:
with `--with-baseline` the linear model votes, whatever valid says; `ensemble_run.py` decides this for both directions and
folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.config.validation import check_config
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.ensemble import common_labels, read_members
from ulmfit_dist.models.bundle import ModelBundle
from ulmfit_dist.models.ensemble_file import ASKED
from ulmfit_dist.stages.ensemble_run import make_ensemble
from ulmfit_dist.stages.evaluate import check_functions
from ulmfit_dist.stages.evaluate_ensemble import common_documents, with_features
from ulmfit_dist.stages.prepare import prepare
from ulmfit_dist.stages.run_directories import check_free_for_ensemble


def save_ensemble(
    folders: Sequence[str | Path],
    output: str | Path,
    runtime: Runtime,
    trust_remote_code: bool = False,
    with_baseline: bool = False,
    baseline_features: str | None = None,
) -> dict[str, Any]:
    """Make the mean of runs a run directory, for `predict`, `evaluate` and `load_classifier`. Collective.

    Answers that the runs have written are not computed again. Temperatures are fitted to the validation documents.

    Args:
        folders: run directories of classifiers of the same texts; with the baseline, one suffices.
        output: run directory of the ensemble, beside them.
        runtime: ranks that share the documents.
        trust_remote_code: call user-defined functions of the runs' configs.
        with_baseline: the linear model of the first run's config votes, too; it is fitted to that run's training documents.
        baseline_features: as for `evaluate_ensemble`.

    Returns:
        As `evaluate_ensemble` with a baseline.

    Raises:
        UserError: as for `evaluate_ensemble`; a member is not a run directory, two have the same name, or `output` is not
            beside them or holds another run.
    """
    output = Path(output)
    with runtime.fail_together():
        members = read_members(folders, least=1 if with_baseline else 2)
        common_labels(members)
        for exported in members:
            check_functions(exported, trust_remote_code)
        configs = [with_features(_config_of(exported), baseline_features) for exported in members]
        config = _config_of_ensemble(configs, output, with_baseline)
    stores = [prepare(exported.config, runtime) for exported in members]
    with runtime.fail_together():
        common_documents(members, stores)
    return make_ensemble(ASKED, config, [replace(config, name=configs[0].name), *configs[1:]], stores[0], runtime)


def _config_of(exported: ModelBundle) -> Config:
    """Return the config of a member, with its run directory as it is named now. Raises UserError if it is not one."""
    run = exported.folder.parent
    if exported.folder.name != "classifier" or not (run / "summary.json").is_file():
        raise UserError(f"{exported.folder}: not a run directory: --save needs runs, such as runs/imdb")
    return replace(exported.config, name=run.resolve().name, runs_dir=str(run.resolve().parent))


def _config_of_ensemble(configs: Sequence[Config], output: Path, with_baseline: bool) -> Config:
    """Return the config of the ensemble: that of its first member, with another name. Raises UserError."""
    first, names = configs[0], [config.name for config in configs]
    if len(set(names)) < len(names):
        raise UserError(f"two runs are named {max(names, key=names.count)}: name each run once, in one folder")
    for config in configs:
        if Path(config.runs_dir) != output.resolve().parent:
            raise UserError(
                f"--save {output} is not beside {config.run_dir}: the ensemble and its runs must be in one folder, such as "
                f"--save {Path(config.runs_dir) / output.name}"
            )
    classifier = replace(first.classifier, baseline=with_baseline)
    config = replace(first, name=output.resolve().name, classifier=classifier)
    check_config(config)
    check_free_for_ensemble(config, ASKED)
    return config
