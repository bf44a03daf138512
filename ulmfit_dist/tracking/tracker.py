"""What a run leaves to be read: its folder's files, W&B's run, and the table of epochs in the terminal.

Only rank 0 writes and speaks. W&B gets one run for all stages, with a step axis of each stage's own; a resumed run goes on
with it. If a line cannot be written, or W&B fails, training goes on.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ulmfit_dist.config.loading import to_dict, to_yaml
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.prediction_table import PREDICTIONS
from ulmfit_dist.data.splits import valid_is_test
from ulmfit_dist.data.token_store import write_bytes, write_json
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.user import metric_names
from ulmfit_dist.tracking.console import EpochTable, final_table
from ulmfit_dist.tracking.jsonl import STAGES, MetricLog, is_epoch, metrics_of, row_after, row_number
from ulmfit_dist.tracking.wandb_environment import mode_messages
from ulmfit_dist.tracking.wandb_process import quiet_wandb, wandb_mode, warn
from ulmfit_dist.tracking.wandb_run import Table, WandbRow, WandbRun, where_offline
from ulmfit_dist.utils.environment import describe_environment


class Tracker:
    """The run directory, and the W&B run, of one training run. On ranks other than 0 all calls do nothing.

    Attributes:
        fresh: whether the run is to start over, in W&B as well.
        run_id: W&B's, once there is one.

    Raises:
        UserError: the run directory cannot be written.
    """

    def __init__(self, config: Config, runtime: Runtime):
        self.config, self.runtime, self.folder = config, runtime, config.run_dir
        self._metrics = MetricLog(self.folder / "metrics.jsonl")
        self._lock = FileLock(self.folder / ".lock", fallback_to_soft=False)  # a soft lock would outlive a killed process
        self._wandb: WandbRun | None = None
        self._first_row, self._table = 0, EpochTable("lm", config.lm.phases)
        self.run_id: str | None = None
        self.started, self.fresh = False, False
        if not runtime.is_main:
            return
        _check_writable(self.folder)
        self._tables = _read_json(self.folder / "tables.json")
        self._facts = {
            "name": config.name,
            "world_size": runtime.world_size,
            "device": device_name(runtime.device),
            "precision": runtime.precision,
            **({"valid_is_test": True} if valid_is_test(config) else {}),
        }
        self.summary: dict[str, Any] = {**self._facts, **_read_summary(self.folder / "summary.json")}
        if not valid_is_test(config):
            self.summary.pop("valid_is_test", None)

    @property
    def lines(self) -> str:
        """The running stage's part of metrics.jsonl."""
        return self._metrics.lines

    def start_stage(self, stage: str, lines: str = "", run_id: str | None = None) -> None:
        """Open the run directory and the W&B run; forget an earlier try of the stage. For when training is certain.

        Args:
            lines: the stage's part of metrics.jsonl up to where it goes on.
            run_id: W&B's, from the checkpoint.
        """
        if not self.runtime.is_main:
            return
        if not self.started:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock()
            write_bytes(self.folder / "config.yaml", to_yaml(self.config).encode())
            self.environment = describe_environment()
            write_json(self.folder / "environment.json", self.environment)
            self.summary |= self._facts
        goes_on = run_id is not None or bool(lines) or not (self.fresh or self._metrics.read(stage))
        self._metrics.begin(stage, lines)
        self._first_row, rows = self._rows(stage)
        if not self.started:
            before = [each for each in STAGES[: STAGES.index(stage)] if each in self.config.stages]
            is_whole = all(self._metrics.read(earlier) for earlier in before)
            self._start_wandb((run_id or self._noted_run_id()) if goes_on and is_whole else None, rows)
        if self._wandb is not None and "baseline" in self.summary:
            for side in ("valid", "test"):
                self._wandb.summarize(_flat_figures(f"baseline/{side}", self.summary["baseline"].get(side, {})))
        self.started = True
        self.show(stage)

    def show(self, stage: str) -> None:
        """Print the head of a stage's table, and the epochs that it has behind it."""
        if not self.runtime.is_main:
            return
        own = metric_names(self.config.classifier.metrics) if stage == "classifier" else []
        self._table = EpochTable(stage, getattr(self.config, stage).phases, self.config.classifier.target, own)
        self.runtime.print(self._table.header() if stage == STAGES[0] else f"\n{self._table.header()}")
        if stage == "classifier" and "baseline" in self.summary:
            self.runtime.print(self._table.baseline_row(self.summary["baseline"]))
        for line in self._metrics.read(stage):
            if is_epoch(line):
                self.runtime.print(self._table.row(line))

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
        """One line of metrics.jsonl: a position (phase, epoch, step, tokens) and metrics by W&B's names.

        Args:
            tables: by name; for W&B alone.
        """
        if not self.runtime.is_main:
            return
        line = {"stage": stage, **position, **{f"{stage}/{name}": value for name, value in metrics.items()}}
        self._metrics.append(line)
        if is_epoch(line):
            self.runtime.print(self._table.row(line))
        if self._wandb is not None:
            row = WandbRow(row_number(line, self._first_row), metrics_of(line))
            self._wandb.log(row, {f"{stage}/{name}": table for name, table in (tables or {}).items()})

    def finish_stage(
        self, stage: str, seconds: float, metrics: dict[str, float] | None = None, tables: dict[str, Any] | None = None
    ) -> None:
        """Put a stage's figures in summary.json, its tables in tables.json; those of a stage without wait for the next."""
        if not self.runtime.is_main:
            return
        self.summary.setdefault("seconds", {})[stage] = round(seconds, 1)
        if metrics is None:
            return
        self.summary[stage] = metrics
        if stage == "classifier":
            (self.folder / PREDICTIONS).unlink(missing_ok=True)  # of the classifier before
        self._tables[stage] = tables or {}
        self._write_summary()
        if self._wandb is not None:
            self._wandb.summarize({f"{stage}/{name}": value for name, value in metrics.items()})
            self._log_final_tables(stage, tables or {})

    def has_predictions(self, needs_test: bool) -> bool:
        """Return whether the classifier's predictions are written, and its figures on a test split. For rank 0."""
        has_test = self.runtime.is_main and "test" in self.summary.get("classifier", {})
        return (has_test or not needs_test) and (self.folder / PREDICTIONS).is_file()

    def finish_test(self, figures: dict[str, Any]) -> None:
        """Put the figures on the test split in summary.json, and in W&B's summary with the ends of intervals apart."""
        if not self.runtime.is_main:
            return
        self.summary.setdefault("classifier", {})["test"] = figures
        self._write_summary()
        if self._wandb is not None:
            self._wandb.summarize(_flat_figures("test", figures))

    def set_baseline(self, figures: dict[str, Any] | None) -> None:
        """Put the baseline's figures in summary.json, as `compute_baseline` gives them; None: there are none."""
        if not self.runtime.is_main:
            return
        self.summary.pop("baseline", None)
        if figures is not None:
            self.summary["baseline"] = figures

    def save_model(self, stage: str, facts: dict[str, Any], texts: dict[str, Any]) -> None:
        """Give W&B a stage's exported model, if tracking.log_model says so."""
        if self._wandb is not None:
            self._wandb.save_model(stage, self.folder / stage, facts, texts)

    def close(self, exit_code: int = 0) -> list[str]:
        """Finish the W&B run: 0 for a run that ended well. Returns where to look at it, a line each."""
        where, noted = [], self._noted_run_id() if self.runtime.is_main else None
        if self._wandb is not None:
            where = self._wandb.finish(exit_code)
        elif noted is not None and not self.started:  # all was done already
            where = where_offline(self.folder / "wandb", noted)
        self._wandb = None
        self._lock.release()
        return where

    def conclude(self, where: Sequence[str]) -> None:
        """Print the final table, and where to look further."""
        if self.runtime.is_main:
            self.runtime.print("\n".join(["", *final_table(self.summary), "", *where]))

    def lock(self) -> None:
        """Keep others out of the run directory, if there is one, until `close` or this process's end. Raises UserError."""
        if not self.runtime.is_main or self._lock.is_locked or not self.folder.is_dir():
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"{self.folder}: another process trains in it: wait for its end, or give this run another name, such as "
                f"name={self.config.name}-2"
            ) from None
        except OSError as error:  # a file system without locks, such as some clusters' Lustre
            warning = f"{self._lock.lock_file} cannot be locked ({error.strerror}): let nobody else train here"
            print(f"warning: {warning}", file=sys.stderr, flush=True)

    def _rows(self, stage: str) -> tuple[int, list[WandbRow]]:
        """The number of a stage's first row in W&B's history, and all rows that there are up to where the stage goes on."""
        first, rows = 0, []
        for each in STAGES:
            lines = self._metrics.read(each)
            rows += [WandbRow(row_number(line, first), metrics_of(line)) for line in lines]
            if each == stage:
                break
            first = row_after(lines, first) + 1
        return first, rows

    def _write_summary(self) -> None:
        write_json(self.folder / "summary.json", self.summary)
        write_json(self.folder / "tables.json", self._tables, indent=None)

    def _noted_run_id(self) -> str | None:
        """W&B's run that this folder's run has been so far."""
        note = self.folder / "wandb" / "run_id"
        return note.read_text(encoding="utf-8").strip() if note.is_file() else None

    def _start_wandb(self, run_id: str | None, rows: list[WandbRow]) -> None:
        """Start W&B's run, or go on with it. Without W&B the next start may go on with it all the same."""
        mode, note = wandb_mode(self.config.tracking), self.folder / "wandb" / "run_id"
        if run_id is None:
            note.unlink(missing_ok=True)  # it is of a training that is no more
        self.run_id = run_id
        for message in mode_messages(self.config.tracking, os.environ):
            warn(message)
        if mode == "disabled":
            return
        quiet_wandb()  # here, where a wrong variable still is an error of the user's, and not in W&B's thread
        facts = {**to_dict(self.config), **self._facts, "environment": self.environment}
        self._wandb = WandbRun(self.config, mode, facts, run_id, rows)
        self.run_id = self._wandb.id
        note.parent.mkdir(exist_ok=True)
        write_bytes(note, self.run_id.encode())

    def _log_final_tables(self, stage: str, tables: dict[str, Any]) -> None:
        assert self._wandb is not None
        if "confusion_matrix" not in tables:
            return
        row = row_after(self._metrics.read(stage), self._first_row)
        self._wandb.log_confusion(row, f"{stage}/confusion_matrix", tables["labels"], tables["confusion_matrix"])
        wrong = tables["most_wrong"]
        columns = list(wrong[0]) if wrong else ["document"]
        table = Table(columns, [[entry[column] for column in columns] for entry in wrong])
        self._wandb.log(WandbRow(row, {}), {f"{stage}/most_wrong": table})


def _flat_figures(prefix: str, figures: dict[str, Any]) -> dict[str, float]:
    """Return figures by W&B's names, with the ends of intervals as figures of their own."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        ends = {"low": value[0], "high": value[1]} if isinstance(value, list) else {"": value}
        base = name.removesuffix("_interval")
        flat |= {f"{prefix}/{base}_{end}".rstrip("_"): number for end, number in ends.items()}
    return flat


def device_name(device: torch.device) -> str:
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
    """Raise UserError if the folder could not be made, without making it: the input may yet be refused."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{folder}: {existing} cannot be written: set runs_dir to a folder of yours")
