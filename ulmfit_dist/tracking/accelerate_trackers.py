"""Trackers of Accelerate (TensorBoard, MLflow and others) as metric loggers, started by `Accelerator.init_trackers`.

A background thread makes all calls of a tracker in order, so training never waits for it, and a failure is only a warning.
A resumed run continues the same records: rows of an earlier start that metrics.jsonl no longer has are hidden (TensorBoard)
or get a later value (MLflow), and rows that a tracker lacks are sent. Trackers other than these two start a new run, with
all rows so far. Trade-off: the earlier records are read at the start.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ulmfit_dist.config.loading import describe, to_yaml
from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import FAILED, UserError, did_you_mean
from ulmfit_dist.tracking.metric_logger import MetricRow
from ulmfit_dist.utils.files import write_json
from ulmfit_dist.utils.log import get_logger

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = get_logger(__name__)

SHUTDOWN_SECONDS = 10.0
"""Time limit for a tracker at the end of a run that failed or was interrupted, in seconds."""
EXTRAS = ("tensorboard", "mlflow")
"""Trackers with an extra of this package; others are installed by their own names."""
FINAL = "final/"
"""Prefix of the final figures of a stage, so that curves hold the rows of metrics.jsonl only."""
Known = dict[tuple[str, int], float]
"""Values that a tracker has, by metric and step."""

_starting = threading.Lock()
"""Held while a tracker starts: `init_trackers` uses attributes of the one accelerator."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that the trackers of `tracking.trackers` exist and are installed. Raises UserError."""
    others = [name for name in names if name != "wandb"]
    if not others:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = [*map(str, get_available_trackers())]
    for name in others:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise UserError(f"tracking.trackers: {name!r} is not known; {did_you_mean(name, LOGGER_TYPE_TO_CLASS)}")
        if name not in available:
            package = f"'ulmfit-dist[{name}]'" if name in EXTRAS else name.replace("_", "-")
            raise UserError(f"tracking.trackers: {name} is not installed: pip install {package}")


class AccelerateLogger:
    """A tracker of Accelerate. Calls return immediately.

    Args:
        name: name of the tracker, such as "mlflow".
        config: config of the run.
        accelerator: starts the tracker.
        earlier: rows logged so far; those that the tracker lacks are sent.
        resumes: continue the records of an earlier start; otherwise they are replaced (TensorBoard) or a new run starts.
    """

    def __init__(self, name: str, config: Config, accelerator: Accelerator, earlier: Sequence[MetricRow], resumes: bool):
        self.name, self.config = name, config
        self._failed, self._tracker, self._known = False, None, dict[tuple[str, int], float]()
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)  # must not delay the exit
        self._thread.start()
        self._later(lambda: self._start(accelerator, earlier, resumes))

    def log(self, row: MetricRow) -> None:
        """Send a row; its numbers only."""
        self._later(lambda: self._send(row))

    def summarize(self, figures: Mapping[str, float], row: int) -> None:
        """Send final figures, with the prefix `FINAL`."""
        values = {f"{FINAL}{name}": value for name, value in figures.items()}
        self._later(lambda: self._send(MetricRow(row, values)))

    def finish(self, exit_code: int) -> list[str]:
        """Finish the tracker within a time limit."""
        timeout = self.config.tracking.wandb_timeout
        seconds = timeout if exit_code == 0 else min(timeout, SHUTDOWN_SECONDS)
        self._later(lambda: self._finish(exit_code))
        self._calls.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._fail(f"{self.name} did not receive all data within {seconds:g} seconds")
        return [] if self._failed else self._how_to_view()

    def _later(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def _work(self) -> None:
        """Make the calls, in order, until one fails."""
        while (call := self._calls.get()) is not None:
            if self._failed:
                continue
            try:
                call()
            except Exception as error:
                reason = " ".join(f"{error}".split())[:300] or type(error).__name__
                self._fail(f"{self.name} failed ({reason})")

    def _fail(self, message: str) -> None:
        if not self._failed:
            self._failed = True
            logger.warning(f"{message}: the run continues without it; metrics.jsonl has all figures")

    def _start(self, accelerator: Accelerator, earlier: Sequence[MetricRow], resumes: bool) -> None:
        first = 0
        if self.name == "tensorboard":
            first = self._start_tensorboard(accelerator, earlier, resumes)
        elif self.name == "mlflow":
            self._start_mlflow(accelerator, resumes)
        else:
            self._init(accelerator, self.config.tracking.project, self.config.run_dir / self.name, {}, has_config=True)
        for row in earlier[first:]:
            self._send(row)

    def _init(
        self, accelerator: Accelerator, project: str, folder: Path, arguments: dict[str, Any], has_config: bool
    ) -> None:
        """Start the tracker by Accelerate."""
        settings = {key: value for key, value, _ in describe(self.config)} if has_config else None
        with _starting:
            earlier, trackers = accelerator.log_with, accelerator.trackers
            accelerator.log_with, accelerator.trackers = [self.name], []
            accelerator.project_configuration.logging_dir = str(folder)
            try:
                accelerator.init_trackers(project, settings, {self.name: arguments})
                (self._tracker,) = accelerator.trackers
            finally:
                accelerator.log_with, accelerator.trackers = earlier, trackers

    def _start_tensorboard(self, accelerator: Accelerator, earlier: Sequence[MetricRow], resumes: bool) -> int:
        """Start TensorBoard's writer in `<run_dir>/tensorboard`. Returns the index of the first row that it lacks."""
        folder = self.config.run_dir / "tensorboard"
        if not resumes:
            for path in folder.glob("events.out.tfevents.*"):
                path.unlink()
        known = read_tensorboard(folder)
        first = next((i for i, row in enumerate(earlier) if not _holds(known, row)), len(earlier))
        last = earlier[first - 1].number if first else -1
        arguments = {"purge_step": last + 1} if known else {}
        self._init(accelerator, folder.name, folder.parent, arguments, has_config=False)
        if not known:
            self._log({"config": f"```yaml\n{to_yaml(self.config)}```"}, 0)
        return first

    def _start_mlflow(self, accelerator: Accelerator, resumes: bool) -> None:
        """Start or resume the MLflow run, in `<run_dir>/mlruns` unless MLFLOW_TRACKING_URI is set."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # to MLflow's developers
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((self.config.run_dir / "mlruns").absolute().as_uri())
            os.environ.pop("MLFLOW_TRACKING_URI", None)  # set by MLflow, for its subprocesses: not the user's choice
        id_path = self.config.run_dir / "mlflow.json"
        uri = mlflow.get_tracking_uri()
        saved = json.loads(id_path.read_text(encoding="utf-8")) if resumes and id_path.is_file() else {}
        run_id = saved.get("run_id") if saved.get("tracking_uri") == uri else None
        self._known = read_mlflow(run_id) if run_id else {}
        arguments = {"run_id": run_id, "run_name": self.config.name}
        self._init(accelerator, self.config.tracking.project, id_path.parent, arguments, has_config=run_id is None)
        active = mlflow.active_run()
        assert active is not None
        write_json(id_path, {"run_id": active.info.run_id, "tracking_uri": uri})

    def _send(self, row: MetricRow) -> None:
        """Send the numbers of a row, except those that the tracker has."""
        values = numbers_of(row.values)
        new = {name: value for name, value in values.items() if not _equal(self._known.get((name, row.number)), value)}
        if new:
            self._log(new, row.number)

    def _log(self, values: dict[str, Any], step: int) -> None:
        assert self._tracker is not None
        self._tracker.log(values, step=step)

    def _finish(self, exit_code: int) -> None:
        if self._tracker is None:
            return
        if self.name == "mlflow" and exit_code != 0:
            import mlflow

            mlflow.end_run("FAILED" if exit_code == FAILED else "KILLED")
        else:
            self._tracker.finish()

    def _how_to_view(self) -> list[str]:
        if self.name == "tensorboard":
            return [f"TensorBoard: tensorboard --logdir {self.config.runs_dir}"]
        if self.name == "mlflow" and "MLFLOW_TRACKING_URI" not in os.environ:
            return [f"MLflow: MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {self.config.run_dir}/mlruns"]
        return []


def numbers_of(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that are numbers."""
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


def read_tensorboard(folder: Path) -> Known:
    """Return the scalars in the event files of a folder, in fp32, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder), {"scalars": 0}).Reload()
    return {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def read_mlflow(run_id: str) -> Known:
    """Return the latest value of each metric and step of an MLflow run."""
    from mlflow import MlflowClient

    client = MlflowClient()
    names: Iterable[str] = client.get_run(run_id).data.metrics
    metrics = (metric for name in names for metric in client.get_metric_history(run_id, name))
    return {(metric.key, metric.step): metric.value for metric in sorted(metrics, key=lambda metric: metric.timestamp)}


def _holds(known: Known, row: MetricRow) -> bool:
    """Return whether TensorBoard has the numbers of a row, which it stores in fp32."""
    import numpy as np

    values = numbers_of(row.values)
    return all(_equal(known.get((name, row.number)), float(np.float32(value))) for name, value in values.items())


def _equal(known: float | None, value: float) -> bool:
    return known is not None and (known == value or (known != known and value != value))
