"""W&B run of one training run, across all its starts.

A background thread makes all calls of W&B in order, so training never waits for W&B, and a failure is only a warning.
Without a server, W&B writes its files for a later `wandb sync`. Trade-off: the last rows may be missing in W&B when a run
exits; metrics.jsonl has them.

W&B's step is the row of the run's history, and follows from the stage and step of a line of metrics.jsonl (`MetricRow`). So
a resumed run sends exactly the rows that W&B lacks.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import RESUMABLE
from ulmfit_dist.tracking.metric_logger import MetricRow, Table
from ulmfit_dist.tracking.wandb_environment import init_arguments
from ulmfit_dist.tracking.wandb_files import cut_off_incomplete, files_of, last_row, mark_as_sent, unsent_files
from ulmfit_dist.tracking.wandb_process import (
    kill_service_process,
    on_one_line,
    quiet_wandb,
    shut_down,
    stop_telemetry,
    warn,
    why_unreachable,
)

ANSWER_SECONDS = 5
"""Time limit for W&B's server to answer, in seconds."""
SHUTDOWN_SECONDS = 10
"""Time limit for W&B after a signal or a failure, in seconds: a scheduler may kill the job soon after its signal."""

MOST_LABELS = 50
"""Maximum number of labels of a confusion matrix that is sent with its empty cells."""


class WandbRun:
    """New or resumed run in W&B. Calls return immediately.

    Args:
        config: config of the run.
        mode: online or offline.
        metadata: W&B's config of the run.
        run_id: id of the W&B run to resume; None for a new one.
        earlier: rows logged so far; those that W&B lacks are sent.

    Attributes:
        id: id of the W&B run.
    """

    def __init__(
        self,
        config: Config,
        mode: str,
        metadata: dict[str, Any],
        run_id: str | None = None,
        earlier: Sequence[MetricRow] = (),
    ):
        self.config, self.metadata, self._earlier = config, metadata, earlier
        self._init_arguments = init_arguments(config, os.environ, run_id)
        self.id = self._init_arguments.run_id or secrets.token_hex(4)
        for message in self._init_arguments.messages:
            warn(message)
        self._folder = config.run_dir / "wandb"
        self._resumes, self._last_known = self.id == run_id, -1  # in a sweep, the agent sets the id, even on resumption
        self._first_row_file = self._folder / "first_row"
        self._first_row = _read_number(self._first_row_file) if self._resumes else 0
        self._was_started = (self._folder / "run_id").is_file()
        self._run: Any = None
        self._mode, self._failed = mode, False
        self._thread = ThreadPoolExecutor(1, "wandb")
        self._later(self._start)

    def log(self, row: MetricRow) -> None:
        """Send a row of the history, with its tables, unless W&B has it."""
        self._later(lambda: self._send(row))

    def summarize(self, figures: Mapping[str, float], row: int = 0) -> None:
        """Set figures in the summary of the W&B run, which belongs to no row."""
        self._later(lambda: self._run.summary.update(dict(figures)))

    def log_confusion(self, row: int, name: str, labels: Sequence[str], counts_CC: Sequence[Sequence[int]]) -> None:
        """Send a confusion matrix (true classes by predicted classes) as W&B's chart."""
        self._later(lambda: self._send(MetricRow(row, {name: _confusion_chart(name, labels, counts_CC)})))

    def save_model(self, name: str, folder: Path, metadata: dict[str, Any], texts: dict[str, Any]) -> None:
        """Upload an exported model as an artifact. Of its token store, W&B gets only the metadata `texts`."""
        if self.config.tracking.log_model:
            self._later(lambda: self._upload(name, folder, metadata, texts))

    def finish(self, exit_code: int) -> list[str]:
        """Finish the W&B run within a time limit.

        Args:
            exit_code: 0: success; `RESUMABLE`: the run will resume, which W&B shows as preempted.

        Returns:
            Lines that say how to view the run.
        """
        timeout = self.config.tracking.wandb_timeout
        seconds, grace = (timeout, SHUTDOWN_SECONDS / 2) if exit_code == 0 else (min(timeout, SHUTDOWN_SECONDS), 0)
        if exit_code == RESUMABLE:
            self._later(lambda: self._run.mark_preempting())
        if not _is_done(self._later(lambda: self._run.finish(exit_code)), seconds + grace):
            self._fail(f"W&B did not receive all data within {seconds:g} seconds: {self._sync()}")
            kill_service_process()
        self._thread.shutdown(wait=False)
        if self._failed or exit_code != 0:  # else it would delay the exit of this process
            shut_down(SHUTDOWN_SECONDS)
        return self._how_to_view() if self._run is not None else []

    def _later(self, call: Callable[[], object]) -> Future[None]:
        def guarded() -> None:
            if self._failed:
                return
            try:
                call()
            except TimeoutError:
                timeout = f"tracking.wandb_timeout={self.config.tracking.wandb_timeout:g} seconds"
                self._fail(f"W&B did not receive all data within {timeout}: {self._sync()}")
            except Exception as error:
                self._fail(f"W&B failed ({on_one_line(error)}): {self._sync()}")

        return self._thread.submit(guarded)

    def _fail(self, message: str) -> None:
        """Stop using W&B. Only the first failure is printed, because it causes the others."""
        if not self._failed:
            self._failed = True
            warn(message)

    def _start(self) -> None:
        import wandb

        if self._mode == "online" and (error := why_unreachable(ANSWER_SECONDS)):
            warn(f"W&B cannot be reached ({error}): the run continues offline")
            self._mode = "offline"
            stop_telemetry()
        try:
            self._run = self._init(self._mode)
        except wandb.Error as error:
            if self._mode == "offline":
                raise
            warn(f"W&B could not start ({on_one_line(error)}): the run continues offline")
            self._mode = "offline"
            shut_down(SHUTDOWN_SECONDS)  # its service process holds the run's id
            self._run = self._init(self._mode)
        for stage in ("lm", "classifier"):
            self._run.define_metric(f"{stage}/step", hidden=True)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        for row in self._earlier:
            self._send(row)
        if self._mode == "online":
            mark_as_sent(self._folder, self.id)  # this start has sent the rows of offline starts

    def _init(self, mode: str) -> Any:
        wandb = quiet_wandb()
        if self._resumes and mode == "offline":
            self._last_known = self._last_in_files()
        timeout = self.config.tracking.wandb_timeout
        arguments = dict(self._init_arguments.arguments)
        if mode == "offline":
            arguments.pop("resume", None)
        run = wandb.init(
            dir=str(self.config.run_dir),
            config=self.metadata,
            mode=mode,
            id=self.id,
            **arguments,
            settings=wandb.Settings(
                **self._init_arguments.settings,
                finish_timeout=timeout,
                finish_timeout_raises=True,
            ),
        )
        if mode == "online":
            self._last_known = run.starting_step - 1
            if not self._resumes:
                self._append_to(run.starting_step)
        return run

    def _append_to(self, num_rows: int) -> None:
        """Append to the rows of an existing W&B run, set by WANDB_RUN_ID and WANDB_RESUME."""
        self._first_row_file.unlink(missing_ok=True)
        self._first_row = num_rows
        if num_rows:
            self._first_row_file.write_text(str(num_rows), encoding="utf-8")

    def _last_in_files(self) -> int:
        """Return the last row in the files of earlier starts, after truncating incomplete records for `wandb sync`."""
        for path in files_of(self._folder, self.id):
            cut_off_incomplete(path)
        in_files = last_row(self._folder, self.id)
        if in_files is None and self._was_started:  # the files were sent and removed
            return max((row.number + self._first_row for row in self._earlier), default=-1)
        return -1 if in_files is None else in_files

    def _send(self, row: MetricRow) -> None:
        if (step := row.number + self._first_row) > self._last_known:
            tables = {name: _wandb_table(table) for name, table in row.tables.items()}
            self._run.log({**row.values, **tables}, step=step)

    def _upload(self, name: str, folder: Path, metadata: dict[str, Any], texts: dict[str, Any]) -> None:
        import wandb

        if self._mode != "online":
            return
        self._run.use_artifact(wandb.Artifact(f"{self.config.name}-texts", type="dataset", metadata=texts))
        model = wandb.Artifact(f"{self.config.name}-{name}", type="model", metadata=metadata)
        model.add_dir(str(folder))
        self._run.log_artifact(model)

    def _how_to_view(self) -> list[str]:
        if self._failed:
            return []  # the warning has named the command
        if self._mode == "online":
            return [f"W&B: {self._run.url}"]
        return where_offline(self._folder, self.id)

    def _sync(self) -> str:
        if self._mode == "offline":
            return sync_command(self._folder, self.id)
        return f"send it with: wandb sync {self._folder}/run-*-{self.id} --include-online"


def _read_number(path: Path) -> int:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return int(text) if text.isdecimal() else 0


def where_offline(folder: Path, run_id: str) -> list[str]:
    """Return the commands that send and show the offline files of a run; none if all were sent."""
    paths = unsent_files(folder, run_id)
    if not paths:
        return []
    part = "the run" if len(paths) == 1 else "its last start"
    return [
        f"W&B is offline: {sync_command(folder, run_id)}",
        f"view {part} in the terminal: wandb beta leet {paths[-1].parent}",
    ]


def sync_command(folder: Path, run_id: str) -> str:
    """Return the command that sends the offline files of a run."""
    return f"send it with: wandb sync {folder}/offline-run-*-{run_id}"


def _wandb_table(table: Table) -> Any:
    import wandb

    return wandb.Table(list(table.columns), [list(row) for row in table.rows])


def _confusion_chart(name: str, labels: Sequence[str], counts_CC: Sequence[Sequence[int]]) -> Any:
    """Return W&B's chart of a confusion matrix, made from counts; `wandb.plot.confusion_matrix` needs every document."""
    import wandb

    cells = [(i, j, n) for i, counts in enumerate(counts_CC) for j, n in enumerate(counts)]
    rows = [[labels[i], labels[j], n] for i, j, n in cells if n or len(labels) <= MOST_LABELS]
    fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
    return wandb.plot_table(
        vega_spec_name="wandb/confusion_matrix/v1",
        data_table=wandb.Table(columns=list(fields), data=rows),
        fields=fields,
        string_fields={"title": name},
    )


def _is_done(call: Future[None], seconds: float) -> bool:
    return bool(wait([call], timeout=seconds).done)
