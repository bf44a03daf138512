"""Result of self-training: the run directory `runs/<name>/` with the classifier of the best round, scored on test.

It has what a run directory has: the exported classifier, curves, figures, predictions and report of the best round, and
`self_training.json` with all rounds. In W&B it is a run of its own, with the history of the best round. Trade-off: the
classifier is copied, so that the run directories of the rounds can be deleted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ulmfit_dist.config.loading import to_yaml
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.models.bundle import WEIGHTS
from ulmfit_dist.stages.baseline_figures import describe_standing
from ulmfit_dist.stages.final_scores import score_test_split
from ulmfit_dist.stages.run import exclusive, report
from ulmfit_dist.tracking.jsonl import MetricLog
from ulmfit_dist.tracking.tracker import Tracker
from ulmfit_dist.utils.files import write_bytes
from ulmfit_dist.utils.formatting import duration
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


def finish_self_training(config: Config, best: Config, first: Config, runtime: Runtime, store: TokenStore) -> None:
    """Copy the classifier and the figures of the best round to the run directory, and score the test split. Collective.

    Args:
        config: config of all rounds.
        best, first: configs of the best round and of round 0, which has the language model's figures.
    """
    classifier = replace(best.classifier, baseline=config.classifier.baseline)
    final = replace(best, name=config.name, classifier=classifier)
    with runtime.fail_together():
        tracker = Tracker(final, runtime)
    with exclusive(tracker, runtime) as messages:
        if classifier.baseline:
            from ulmfit_dist.stages.baseline import measure_baseline  # scikit-learn takes a second to import

            measure_baseline(final, runtime, store, tracker)
        else:
            tracker.set_baseline(None)
        with runtime.fail_together():
            if runtime.is_main and not _is_copied(best.run_dir, final.run_dir):
                _copy(best, first, final, tracker)
        score_test_split(final, runtime, store, tracker)
        with runtime.fail_together():
            if runtime.is_main:
                write_bytes(final.run_dir / "config.yaml", to_yaml(config).encode())
                messages += report(final.run_dir)
    if runtime.is_main:
        for line in describe_standing(tracker.summary, final):
            logger.info(line)


def describe_rounds(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table of the rounds, a line at a time, and why there are no more."""
    metric = result["metric"]
    yield f"\n{'round':<8}{'pseudo-labels':>14}{'share':>8}{metric + ' on valid':>20}{'time':>10}"
    for number, one in enumerate(result["rounds"]):
        documents = f"{sum(one['documents'].values()):,}" if "documents" in one else ""
        share = f"{one['share']:.0%}" if "share" in one else ""
        mark = "  best" if number == result["best"] else ""
        yield f"{number:<8}{documents:>14}{share:>8}{one['valid'][metric]:>20.4f}{duration(one['seconds']):>10}{mark}"
    yield f"end: {result['end']}"


def _is_copied(source: Path, target: Path) -> bool:
    """Return whether the classifier of a run directory is a copy of that of another, and its figures are written."""
    files = [folder / "classifier" / "training.json" for folder in (source, target)]
    has_files = all(path.is_file() for path in (*files, target / "classifier" / WEIGHTS, target / "summary.json"))
    return has_files and files[0].read_bytes() == files[1].read_bytes()


def _copy(best: Config, first: Config, final: Config, tracker: Tracker) -> None:
    """Copy the best round's classifier, curves and figures; the language model's curves are those of round 0."""
    sources = {"lm": first.run_dir, "classifier": best.run_dir}
    lines = {
        stage: "".join(json.dumps(line) + "\n" for line in MetricLog(sources[stage] / "metrics.jsonl").read(stage))
        for stage in final.stages
    }
    run_dir = final.run_dir
    (run_dir / "wandb" / "run_id").unlink(missing_ok=True)  # of the best round of an earlier call
    write_bytes(run_dir / "metrics.jsonl", "".join(lines.values()).encode())
    tracker.start_stage("classifier", lines["classifier"])
    for stage in final.stages:
        summary, tables = (
            json.loads((sources[stage] / name).read_text(encoding="utf-8")) for name in ("summary.json", "tables.json")
        )
        metrics = {name: value for name, value in summary[stage].items() if name != "test"}
        tracker.finish_stage(stage, summary["seconds"][stage], metrics, tables.get(stage))
    temporary = run_dir / ".classifier.tmp"
    for old in (temporary, run_dir / "classifier"):
        shutil.rmtree(old, ignore_errors=True)
    shutil.copytree(best.run_dir / "classifier", temporary)
    temporary.replace(run_dir / "classifier")
    tracker.save_model("classifier", json.loads((run_dir / "classifier" / "training.json").read_bytes()), {})
