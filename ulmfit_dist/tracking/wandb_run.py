"""One training run as a run of W&B, however often it is started.

W&B may be slow, away, or die: nothing here waits for it. A thread of its own makes all calls, in order; what goes wrong is a
warning, and the run goes on. If the server cannot be reached, W&B writes its files for a later `wandb sync`.

W&B's own step is the row of the run's history, and follows from what a line of metrics.jsonl is about (`WandbRow`). So a
start that goes on knows what W&B has: it sends what a killed one could not, and nothing twice.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import RESUMABLE
from ulmfit_dist.tracking.wandb_environment import init_arguments
from ulmfit_dist.tracking.wandb_files import cut_off_incomplete, files_of, last_row, mark_as_sent, unsent_files
from ulmfit_dist.tracking.wandb_process import (
    kill_wandbs_process,
    leave,
    on_one_line,
    quiet_wandb,
    stop_telemetry,
    warn,
    why_unreachable,
)

SECONDS_TO_ANSWER = 5
"""For a server, before it counts as one that cannot be reached."""
SECONDS_TO_LEAVE = 10
"""For W&B, after a signal or a failure: who has sent the signal may not wait for long."""

MOST_LABELS = 50
"""Of a confusion matrix whose empty cells W&B gets, too."""


@dataclass(frozen=True)
class WandbRow:
    """A row of W&B's history.

    Attributes:
        number: W&B's step.
        values: metrics by name.
    """

    number: int
    values: dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Rows of texts and numbers, as W&B's table of them."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class WandbRun:
    """W&B's run: a new one, or one that goes on. Calls return at once.

    Args:
        config: of the run.
        mode: online or offline.
        facts: what W&B's config is to have beside it.
        run_id: of the run to go on with; None for a new one.
        earlier: rows that the run should have by now; those that W&B lacks are sent.

    Attributes:
        id: W&B's.
    """

    def __init__(
        self, config: Config, mode: str, facts: dict[str, Any], run_id: str | None = None, earlier: Sequence[WandbRow] = ()
    ):
        self.config, self.facts, self._earlier = config, facts, earlier
        self._init_arguments = init_arguments(config, os.environ, run_id)
        self.id = self._init_arguments.run_id or secrets.token_hex(4)
        for message in self._init_arguments.messages:
            warn(message)
        self._folder = config.run_dir / "wandb"
        self._goes_on, self._known = self.id == run_id, -1  # a sweep's agent decides the id, also of a folder that resumes
        self._first_row_file = self._folder / "first_row"
        self._first_row = _read_number(self._first_row_file) if self._goes_on else 0
        self._was_here = (self._folder / "run_id").is_file()
        self._run: Any = None
        self._mode, self._failed = mode, False
        self._thread = ThreadPoolExecutor(1, "wandb")
        self._later(self._start)

    def log(self, row: WandbRow, tables: dict[str, Table] | None = None) -> None:
        """A row of the history, unless W&B has it."""
        self._later(lambda: self._send(row, tables or {}))

    def summarize(self, metrics: dict[str, Any]) -> None:
        """Final figures, which W&B lists its runs by."""
        self._later(lambda: self._run.summary.update(metrics))

    def log_confusion(self, row: int, name: str, labels: Sequence[str], counts_CC: Sequence[Sequence[int]]) -> None:
        """A confusion matrix, true classes by predicted ones, as W&B draws it."""
        self._later(lambda: self._send(WandbRow(row, {name: _confusion_chart(name, labels, counts_CC)}), {}))

    def save_model(self, name: str, folder: Path, facts: dict[str, Any], texts: dict[str, Any]) -> None:
        """Upload an exported model as an artifact made from a token store, of which W&B learns the facts alone."""
        if self.config.tracking.log_model:
            self._later(lambda: self._upload(name, folder, facts, texts))

    def finish(self, exit_code: int) -> list[str]:
        """End the run, or stop waiting for it. 0: it ended well; `RESUMABLE`: it is to go on, which W&B calls preempted.

        Returns:
            Where to look at it, a line each.
        """
        patience = self.config.tracking.wandb_timeout
        seconds, grace = (patience, SECONDS_TO_LEAVE / 2) if exit_code == 0 else (min(patience, SECONDS_TO_LEAVE), 0)
        if exit_code == RESUMABLE:
            self._later(lambda: self._run.mark_preempting())
        if not _is_done(self._later(lambda: self._run.finish(exit_code)), seconds + grace):
            self._fail(f"W&B did not take all in {seconds:g} seconds: {self._sync()}")
            kill_wandbs_process()
        self._thread.shutdown(wait=False)
        if self._failed or exit_code != 0:  # else its end would hold this process up, while others have ended
            leave(SECONDS_TO_LEAVE)
        return self._where() if self._run is not None else []

    def _later(self, call: Callable[[], object]) -> Future[None]:
        def guarded() -> None:
            if self._failed:
                return
            try:
                call()
            except TimeoutError:
                patience = f"tracking.wandb_timeout={self.config.tracking.wandb_timeout:g} seconds"
                self._fail(f"W&B did not take all in {patience}: {self._sync()}")
            except Exception as error:
                self._fail(f"W&B failed ({on_one_line(error)}): {self._sync()}")

        return self._thread.submit(guarded)

    def _fail(self, message: str) -> None:
        """Give W&B up. Only the first reason is said; others follow from it."""
        if not self._failed:
            self._failed = True
            warn(message)

    def _start(self) -> None:
        import wandb

        if self._mode == "online" and (error := why_unreachable(SECONDS_TO_ANSWER)):
            warn(f"W&B cannot be reached ({error}): the run goes on offline")
            self._mode = "offline"
            stop_telemetry()
        try:
            self._run = self._init(self._mode)
        except wandb.Error as error:
            if self._mode == "offline":
                raise
            warn(f"W&B could not start ({on_one_line(error)}): the run goes on offline")
            self._mode = "offline"
            leave(SECONDS_TO_LEAVE)  # its process holds the run's id
            self._run = self._init(self._mode)
        for stage in ("lm", "classifier"):
            self._run.define_metric(f"{stage}/step", hidden=True)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        for row in self._earlier:
            self._send(row, {})
        if self._mode == "online":
            mark_as_sent(self._folder, self.id)  # the rows of offline starts are this one's now

    def _init(self, mode: str) -> Any:
        wandb = quiet_wandb()
        if self._goes_on and mode == "offline":
            self._known = self._last_in_files()
        patience = self.config.tracking.wandb_timeout
        arguments = dict(self._init_arguments.arguments)
        if mode == "offline":
            arguments.pop("resume", None)
        run = wandb.init(
            dir=str(self.config.run_dir),
            config=self.facts,
            mode=mode,  # type: ignore[arg-type]
            id=self.id,
            **arguments,
            settings=wandb.Settings(
                **self._init_arguments.settings,
                finish_timeout=patience,
                finish_timeout_raises=True,
            ),
        )
        if mode == "online":
            self._known = run.starting_step - 1
            if not self._goes_on:
                self._append_to(run.starting_step)
        return run

    def _append_to(self, num_rows: int) -> None:
        """Have the history begin behind the rows of a W&B run that WANDB_RUN_ID and WANDB_RESUME name."""
        self._first_row_file.unlink(missing_ok=True)
        self._first_row = num_rows
        if num_rows:
            self._first_row_file.write_text(str(num_rows), encoding="utf-8")

    def _last_in_files(self) -> int:
        """The last row that the files of earlier starts have, which are made fit for `wandb sync`."""
        for path in files_of(self._folder, self.id):
            cut_off_incomplete(path)
        in_files = last_row(self._folder, self.id)
        if in_files is None and self._was_here:  # sent, and removed since
            return max((row.number + self._first_row for row in self._earlier), default=-1)
        return -1 if in_files is None else in_files

    def _send(self, row: WandbRow, tables: dict[str, Table]) -> None:
        import wandb

        if (step := row.number + self._first_row) > self._known:
            as_wandbs = {name: wandb.Table(list(t.columns), [list(r) for r in t.rows]) for name, t in tables.items()}
            self._run.log({**row.values, **as_wandbs}, step=step)

    def _upload(self, name: str, folder: Path, facts: dict[str, Any], texts: dict[str, Any]) -> None:
        import wandb

        if self._mode != "online":
            return
        self._run.use_artifact(wandb.Artifact(f"{self.config.name}-texts", type="dataset", metadata=texts))
        model = wandb.Artifact(f"{self.config.name}-{name}", type="model", metadata=facts)
        model.add_dir(str(folder))
        self._run.log_artifact(model)

    def _where(self) -> list[str]:
        if self._failed:
            return []  # it was said
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
    """The commands that help with what a run has written offline into W&B's folder; none where all of it was sent."""
    paths = unsent_files(folder, run_id)
    if not paths:
        return []
    part = "the run" if len(paths) == 1 else "its last start"
    return [f"W&B is offline: {sync_command(folder, run_id)}", f"look at {part} here: wandb beta leet {paths[-1].parent}"]


def sync_command(folder: Path, run_id: str) -> str:
    return f"send it with: wandb sync {folder}/offline-run-*-{run_id}"


def _confusion_chart(name: str, labels: Sequence[str], counts_CC: Sequence[Sequence[int]]) -> Any:
    """W&B's own chart of a confusion matrix; made from counts, where its function wants each document."""
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
