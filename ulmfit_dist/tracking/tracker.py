"""Run directory, trackers and terminal output of one training run.

Only rank 0 writes. All stages share one W&B run (and one run of each other tracker), in which each stage has its own step
axis, and a resumed run continues it. Trade-off: tracking never stops training. If a line cannot be written, or a tracker
fails, a warning is printed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ulmfit_dist.config.loading import to_dict, to_yaml
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.prediction_table import PREDICTIONS
from ulmfit_dist.data.splits import valid_is_test
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.user import metric_names
from ulmfit_dist.tracking.accelerate_trackers import AccelerateLogger, check_trackers
from ulmfit_dist.tracking.console import ConsoleLogger, EpochTable, final_table
from ulmfit_dist.tracking.jsonl import STAGES, MetricLog, is_epoch, row_after
from ulmfit_dist.tracking.metric_logger import MetricLogger, MetricRow, Table, row_of
from ulmfit_dist.tracking.run_lock import RunLock
from ulmfit_dist.tracking.wandb_environment import mode_messages
from ulmfit_dist.tracking.wandb_process import quiet_wandb, wandb_mode, warn
from ulmfit_dist.tracking.wandb_run import WandbRun, where_offline
from ulmfit_dist.utils.environment import describe_environment
from ulmfit_dist.utils.files import write_bytes, write_json
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


class Tracker:
    """Run directory and trackers of one training run. On ranks other than 0 all calls do nothing.

    Attributes:
        fresh: True if the run starts over, also in W&B.
        run_id: id of the W&B run, once it is started.

    Raises:
        UserError: the run directory cannot be written, or a tracker is unknown or not installed.
    """

    def __init__(self, config: Config, runtime: Runtime):
        self.config, self.runtime, self.folder = config, runtime, config.run_dir
        self._metrics = MetricLog(self.folder / "metrics.jsonl")
        self._lock = RunLock(config)
        self._wandb: WandbRun | None = None
        self._first_row, self._console = 0, ConsoleLogger(EpochTable("lm", config.lm.phases))
        self._loggers: list[MetricLogger] = [self._metrics, self._console]
        self.run_id: str | None = None
        self.started, self.fresh = False, False
        check_trackers(config.tracking.trackers)
        if not runtime.is_main:
            return
        _check_writable(self.folder)
        self._tables = _read_json(self.folder / "tables.json")
        self._metadata = {
            "name": config.name,
            "world_size": runtime.world_size,
            "device": device_name(runtime.device),
            "precision": runtime.precision,
            **({"valid_is_test": True} if valid_is_test(config) else {}),
        }
        self.summary: dict[str, Any] = {**self._metadata, **_read_summary(self.folder / "summary.json")}
        if not valid_is_test(config):
            self.summary.pop("valid_is_test", None)

    @property
    def lines(self) -> str:
        """Lines of the running stage in metrics.jsonl."""
        return self._metrics.lines

    def start_stage(self, stage: str, lines: str = "", run_id: str | None = None) -> None:
        """Open the run directory and the W&B run, and drop lines of earlier attempts. Call it just before training.

        Args:
            lines: lines of the stage in metrics.jsonl up to the position where it resumes.
            run_id: id of the W&B run in the checkpoint.
        """
        if not self.runtime.is_main:
            return
        if not self.started:
            self._open_folder()
        resumes = run_id is not None or bool(lines) or not (self.fresh or self._metrics.read(stage))
        self._metrics.begin(stage, lines)
        self._first_row, rows = self._rows(stage)
        if not self.started:
            earlier_stages = [earlier for earlier in STAGES[: STAGES.index(stage)] if earlier in self.config.stages]
            is_complete = all(self._metrics.read(earlier) for earlier in earlier_stages)
            continues = resumes and is_complete
            if "wandb" in self.config.tracking.trackers:
                self._start_wandb((run_id or self._saved_run_id()) if continues else None, rows)
            for name in self.config.tracking.trackers:
                if name != "wandb":
                    accelerator = self.runtime.accelerator
                    self._loggers.append(AccelerateLogger(name, self.config, accelerator, rows, continues))
        for side in ("valid", "test") if "baseline" in self.summary else ():
            self._summarize(_flat_figures(f"baseline/{side}", self.summary["baseline"].get(side, {})), stage)
        self.started = True
        self.show(stage)

    def start_ensemble(self) -> None:
        """Open the run directory and the trackers of an ensemble of runs, which has figures but no training of its own."""
        if not self.runtime.is_main:
            return
        self._open_folder()
        saved = None if self.fresh else self._saved_run_id()
        for name in self.config.tracking.trackers:
            if name == "wandb":
                self._start_wandb(saved, [])
            else:
                accelerator = self.runtime.accelerator
                self._loggers.append(AccelerateLogger(name, self.config, accelerator, [], saved is not None))
        self.started = True

    def finish_ensemble(
        self, figures: dict[str, Any], result: dict[str, Any], tables: dict[str, Any], seconds: dict[str, float]
    ) -> None:
        """Write the figures of an ensemble to summary.json and the trackers.

        Args:
            figures: those of the mean, as of a classifier, with `test`.
            result: those of all members as well.
            tables: confusion matrix and labels, if there are classes.
            seconds: duration of the members' stages.
        """
        if not self.runtime.is_main:
            return
        self.summary |= {"classifier": figures, "ensemble": result, "seconds": seconds}
        self.summary.pop("baseline", None)
        if baseline := result.get("baseline"):
            test = {"test": baseline["test"]} if "test" in baseline else {}
            others = ("valid_loss", "C", "temperature")
            metrics = {name: v for name, v in baseline.items() if isinstance(v, float) and name not in others}
            self.summary["baseline"] = {"valid": {"loss": baseline["valid_loss"], **metrics}, **test}
        self._tables["classifier"] = tables
        self._write_summary()
        valid = {name: value for name, value in figures.items() if name != "test"}
        self._summarize(_flat_figures("classifier", valid) | _flat_figures("test", figures.get("test", {})), "classifier")
        for side in ("valid", "test") if "baseline" in self.summary else ():
            self._summarize(_flat_figures(f"baseline/{side}", self.summary["baseline"].get(side, {})), "classifier")
        if self._wandb is not None and tables:
            self._log_final_tables("classifier", tables)

    def show(self, stage: str) -> None:
        """Print the header of a stage's table, and its epochs so far."""
        if not self.runtime.is_main:
            return
        user_metrics = metric_names(self.config.classifier.metrics) if stage == "classifier" else []
        table = self._console.table = EpochTable(
            stage, getattr(self.config, stage).phases, self.config.classifier.target, user_metrics
        )
        logger.info(table.header() if stage == STAGES[0] else f"\n{table.header()}")
        if stage == "classifier" and "baseline" in self.summary:
            logger.info(table.baseline_row(self.summary["baseline"]))
        for line in self._metrics.read(stage):
            if is_epoch(line):
                logger.info(table.row(line))

    def drop_stage(self, stage: str) -> None:
        """Remove the metrics, tables and predictions of a stage whose input has changed."""
        if not self.runtime.is_main:
            return
        self.summary.pop(stage, None)
        if stage == "classifier":
            (self.folder / PREDICTIONS).unlink(missing_ok=True)
        self.summary.get("seconds", {}).pop(stage, None)
        self._tables.pop(stage, None)
        self._write_summary()
        self._metrics.drop(stage)

    def log(
        self, stage: str, position: dict[str, Any], metrics: dict[str, float], tables: dict[str, Table] | None = None
    ) -> None:
        """Log a line: a position (phase, epoch, step, tokens) and metrics by their W&B names.

        Args:
            tables: tables by name; only W&B shows them.
        """
        if not self.runtime.is_main:
            return
        line = {"stage": stage, **position, **{f"{stage}/{name}": value for name, value in metrics.items()}}
        row = row_of(line, self._first_row, {f"{stage}/{name}": table for name, table in (tables or {}).items()})
        for backend in self._loggers:
            backend.log(row)

    def finish_stage(
        self, stage: str, seconds: float, metrics: dict[str, float] | None = None, tables: dict[str, Any] | None = None
    ) -> None:
        """Write a stage's metrics and tables to disk; of a stage without metrics, keep the duration for the next write."""
        if not self.runtime.is_main:
            return
        self.summary.setdefault("seconds", {})[stage] = round(seconds, 1)
        if metrics is None:
            return
        self.summary[stage] = metrics
        if stage == "classifier":
            (self.folder / PREDICTIONS).unlink(missing_ok=True)  # predictions of the previous classifier
        self._tables[stage] = tables or {}
        self._write_summary()
        self._summarize({f"{stage}/{name}": value for name, value in metrics.items()}, stage)
        if self._wandb is not None:
            self._log_final_tables(stage, tables or {})

    def has_predictions(self, needs_test: bool) -> bool:
        """Return True if the classifier's predictions and, if needed, its test figures are written. Valid on rank 0."""
        has_test = self.runtime.is_main and "test" in self.summary.get("classifier", {})
        return (has_test or not needs_test) and (self.folder / PREDICTIONS).is_file()

    def finish_test(self, figures: dict[str, Any]) -> None:
        """Write the figures on the test split to summary.json and the trackers, which get both ends of each interval."""
        if not self.runtime.is_main:
            return
        self.summary.setdefault("classifier", {})["test"] = figures
        self._write_summary()
        self._summarize(_flat_figures("test", figures), "classifier")

    def set_baseline(self, figures: dict[str, Any] | None) -> None:
        """Set the baseline's figures (of `compute_baseline`) in the summary; None: no baseline."""
        if not self.runtime.is_main:
            return
        before = self.summary.pop("baseline", None)
        if figures is not None:
            self.summary["baseline"] = figures
        if "classifier" in self.summary and figures != before:  # nothing may be left to train that would write it
            self._write_summary()

    def save_model(self, stage: str, metadata: dict[str, Any], texts: dict[str, Any]) -> None:
        """Upload a stage's exported model to W&B if tracking.log_model is set."""
        if self._wandb is not None:
            self._wandb.save_model(stage, self.folder / stage, metadata, texts)

    def close(self, exit_code: int = 0) -> list[str]:
        """Finish the trackers; exit code 0 means success. Returns the lines that say how to view the run."""
        lines, saved = list[str](), self._saved_run_id() if self.runtime.is_main else None
        for backend in self._loggers:
            lines += backend.finish(exit_code)
        if self._wandb is None and saved is not None and not self.started:  # all stages had been finished before
            lines += where_offline(self.folder / "wandb", saved)
        self._wandb, self._loggers = None, []
        self._lock.release()
        return lines

    def conclude(self, lines: Sequence[str]) -> None:
        """Print the final table, then these lines."""
        if self.runtime.is_main:
            self.runtime.print("\n".join(["", *final_table(self.summary), "", *lines]))

    def lock(self) -> None:
        """Lock the run directory, if it exists, until `close` or the end of this process. Raises UserError."""
        if self.runtime.is_main:
            self._lock.acquire()

    def _open_folder(self) -> None:
        """Make and lock the run directory, and write what describes the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock()
        write_bytes(self.folder / "config.yaml", to_yaml(self.config).encode())
        self.environment = describe_environment()
        write_json(self.folder / "environment.json", self.environment)
        self.summary |= self._metadata

    def _summarize(self, figures: dict[str, float], stage: str) -> None:
        """Give the trackers final figures of a stage."""
        row = row_after(self._metrics.read(stage), self._first_row)
        for backend in self._loggers:
            backend.summarize(figures, row)

    def _rows(self, stage: str) -> tuple[int, list[MetricRow]]:
        """Return the number of a stage's first row in the history of all stages, and all rows logged so far."""
        first, rows = 0, list[MetricRow]()
        for earlier in STAGES:
            lines = self._metrics.read(earlier)
            rows += [row_of(line, first) for line in lines]
            if earlier == stage:
                break
            first = row_after(lines, first) + 1
        return first, rows

    def _write_summary(self) -> None:
        write_json(self.folder / "summary.json", self.summary)
        write_json(self.folder / "tables.json", self._tables, indent=None)

    def _saved_run_id(self) -> str | None:
        """Return the id of the W&B run of this run directory."""
        path = self.folder / "wandb" / "run_id"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else None

    def _start_wandb(self, run_id: str | None, rows: list[MetricRow]) -> None:
        """Start or resume the W&B run. A start with W&B disabled keeps the saved id for the next one."""
        mode, id_path = wandb_mode(self.config.tracking), self.folder / "wandb" / "run_id"
        if run_id is None:
            id_path.unlink(missing_ok=True)  # id of a training that has been discarded
        self.run_id = run_id
        for message in mode_messages(self.config.tracking, os.environ):
            warn(message)
        if mode == "disabled":
            return
        quiet_wandb()  # raises UserError for invalid variables here, not in W&B's thread
        metadata = {**to_dict(self.config), **self._metadata, "environment": self.environment}
        self._wandb = WandbRun(self.config, mode, metadata, run_id, rows)
        self._loggers.append(self._wandb)
        self.run_id = self._wandb.id
        id_path.parent.mkdir(exist_ok=True)
        write_bytes(id_path, self.run_id.encode())

    def _log_final_tables(self, stage: str, tables: dict[str, Any]) -> None:
        assert self._wandb is not None
        if "confusion_matrix" not in tables:
            return
        row = row_after(self._metrics.read(stage), self._first_row)
        self._wandb.log_confusion(row, f"{stage}/confusion_matrix", tables["labels"], tables["confusion_matrix"])
        documents = tables["most_wrong"]
        columns = list(documents[0]) if documents else ["document"]
        table = Table(columns, [[document[column] for column in columns] for document in documents])
        self._wandb.log(MetricRow(row, {}, tables={f"{stage}/most_wrong": table}))


def _flat_figures(prefix: str, figures: dict[str, Any]) -> dict[str, float]:
    """Return figures by their W&B names, with each interval as two figures, `_low` and `_high`."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        ends = {"low": value[0], "high": value[1]} if isinstance(value, list) else {"": value}
        base = name.removesuffix("_interval")
        flat |= {f"{prefix}/{base}_{end}".rstrip("_"): number for end, number in ends.items()}
    return flat


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_summary(path: Path) -> dict[str, Any]:
    summary = _read_json(path)
    return summary if isinstance(summary.get("seconds", {}), dict) else {}


def _check_writable(folder: Path) -> None:
    """Raise UserError if the folder cannot be created. Nothing is created, because the input may still be invalid."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{folder}: {existing} is not writable: set runs_dir to a writable folder")
