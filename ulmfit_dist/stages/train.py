"""What the two training stages share: tracking around the recipe, then the export."""

from __future__ import annotations

import time
from pathlib import Path

from ulmfit_dist.config import ClassifierConfig, Config, LMConfig
from ulmfit_dist.data.store import TokenStore
from ulmfit_dist.model.export import save_exported
from ulmfit_dist.runtime import Runtime
from ulmfit_dist.stages.show import show_first_batch
from ulmfit_dist.training.learner import DistributedLearner
from ulmfit_dist.training.recipe import run_phases
from ulmfit_dist.training.tracking import Tracker, TrackingCallback


def train_stage(
    learner: DistributedLearner,
    settings: LMConfig | ClassifierConfig,
    unit: str,
    labels: list[str] | None,
    config: Config,
    runtime: Runtime,
    store: TokenStore,
    tracker: Tracker,
) -> Path:
    """Run a stage's recipe and export its model to the folder of its name in the run directory.

    Args:
        learner: built, untrained.
        settings: the stage's section of the config.
        unit: "tokens" or "examples": what throughput is counted in.
        labels: class names; None for a language model.

    Returns:
        The folder.
    """
    stage = learner.stage
    with runtime.together():
        tracker.start_stage(stage)
    if runtime.settings.virtual_ranks is not None and not learner.dls.train.share.exact:
        runtime.print(f"runtime.virtual_ranks={runtime.settings.virtual_ranks} is set aside: it is no multiple of the ranks")
    tracking = TrackingCallback(tracker, unit)
    learner.add_cb(tracking)
    show_first_batch(config, runtime, store, learner)
    started = time.perf_counter()
    run_phases(learner, settings.phases)
    metrics = tracking.final_metrics()
    folder = config.run_dir / stage
    with runtime.together():
        if runtime.is_main:
            training = {"data_fingerprint": store.fingerprint, "world_size": runtime.world_size, "metrics": metrics}
            save_exported(folder, learner.model, config, store, labels, training)
    tracker.finish_stage(stage, time.perf_counter() - started, metrics)
    return folder
