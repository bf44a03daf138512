"""What a run leaves to be read: metrics.jsonl, summary.json, and W&B's files.

Only rank 0 writes. W&B gets one run for all stages, with a step axis of each stage's own; a resumed run goes on with it.
Without a login it writes its files offline, for `wandb sync`. If W&B fails, or a line cannot be written, training goes on.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ulmfit_dist.compose import to_dict, to_yaml
from ulmfit_dist.config import Config, TrackingConfig
from ulmfit_dist.data.store import write_bytes, write_json
from ulmfit_dist.errors import UserError
from ulmfit_dist.runtime import Runtime


class Tracker:
    """The run directory, and the W&B run, of one training run. On ranks other than 0 all calls do nothing.

    Attributes:
        resume: whether to go on with the run directory's W&B run, if it has one.
        lines: the running stage's part of metrics.jsonl.
        run_id: W&B's, once it has started.

    Raises:
        UserError: the run directory cannot be written.
    """

    def __init__(self, config: Config, runtime: Runtime):
        self.config, self.runtime, self.folder, self.resume = config, runtime, config.run_dir, False
        self.wandb: Any = None
        self._lock = FileLock(self.folder / ".lock", fallback_to_soft=False)  # a soft lock would outlive a killed process
        self.run_id: str | None = None
        self.started = False
        self.lines, self.lines_of_others, self.is_torn = "", "", False
        if not runtime.is_main:
            return
        _check_writable(self.folder)
        self.summary: dict[str, Any] = {
            **_read_summary(self.folder / "summary.json"),
            "name": config.name,
            "world_size": runtime.world_size,
            "device": device_name(runtime.device),
            "precision": runtime.precision,
        }

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
            self._start_wandb(run_id)
            self.started = True
        self.lines, self.lines_of_others = lines, _lines_of_others(self._metrics, stage)
        self._write_metrics()

    def drop_stage(self, stage: str) -> None:
        """Remove a stage's export, checkpoints and figures, because what it was built on has changed."""
        if not self.runtime.is_main:
            return
        shutil.rmtree(self.folder / stage, ignore_errors=True)
        shutil.rmtree(self.config.checkpoints_dir / stage, ignore_errors=True)
        self.summary.pop(stage, None)
        self.summary.get("seconds", {}).pop(stage, None)
        write_json(self.folder / "summary.json", self.summary)
        self.lines_of_others = "".join(line for line in self.lines_of_others.splitlines(True) if _stage_of(line) != stage)
        self._write_metrics()

    def log(self, stage: str, position: dict[str, Any], metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl: a position (phase, epoch, step, tokens) and metrics by W&B's names."""
        if not self.runtime.is_main:
            return
        named = {f"{stage}/{name}": value for name, value in metrics.items()}
        line = json.dumps({"stage": stage, **position, **named}) + "\n"
        self.lines += line
        self._append(line)
        self._to_wandb("log", {**named, f"{stage}/step": position["step"], f"{stage}/epoch": position["epoch"]})

    def finish_stage(self, stage: str, seconds: float, metrics: dict[str, float] | None = None) -> None:
        """Put a stage's figures in summary.json; those of a stage without metrics wait for the next one."""
        if not self.runtime.is_main:
            return
        self.summary.setdefault("seconds", {})[stage] = round(seconds, 1)
        if metrics is None:
            return
        self.summary[stage] = metrics
        write_json(self.folder / "summary.json", self.summary)
        self._to_wandb("summary", {f"{stage}/{name}": value for name, value in metrics.items()})

    def close(self, exit_code: int = 0) -> None:
        """Finish the W&B run: 0 for a run that ended well."""
        self._to_wandb("finish", exit_code)
        if self.run_id is not None and self.wandb is None:
            _leave_wandb()
        self.wandb = None
        self._lock.release()

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

    @property
    def _metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    def _write_metrics(self) -> None:
        write_bytes(self._metrics, (self.lines_of_others + self.lines).encode())
        self.is_torn = False

    def _append(self, line: str) -> None:
        """Add a line to metrics.jsonl; if there is no room, go on, and try again with the next one."""
        try:
            if self.is_torn:
                self._write_metrics()
                return
            with self._metrics.open("a", encoding="utf-8") as lines:
                lines.write(line)
        except (OSError, UserError) as error:
            if not self.is_torn:
                print(f"warning: {self._metrics} cannot be written, training goes on: {error}", file=sys.stderr, flush=True)
            self.is_torn = True

    def _start_wandb(self, run_id: str | None) -> None:
        mode = wandb_mode(self.config.tracking)
        if mode == "disabled":
            return
        note = self.folder / "wandb" / "run_id"
        if run_id is None and self.resume and note.is_file():
            run_id = note.read_text(encoding="utf-8").strip()
        self.wandb = _start_wandb(self.config, self.summary, mode, run_id)
        if self.wandb is not None:
            self.run_id = str(self.wandb.id)
            note.parent.mkdir(exist_ok=True)
            write_bytes(note, self.run_id.encode())

    def _to_wandb(self, what: str, content: Any) -> None:
        """Tell W&B something; if that fails, the run goes on without it."""
        if self.wandb is None:
            return
        try:
            if what == "summary":
                self.wandb.summary.update(content)
            else:
                getattr(self.wandb, what)(content)
        except Exception as error:
            print(f"warning: W&B failed, {self._metrics} has what it lacks: {error}", file=sys.stderr, flush=True)
            self.wandb = None


def _leave_wandb() -> None:
    """End what is left of W&B after a failure, which it would report with a traceback at the end of this process.

    Its own process ends at a SIGTERM (wandb issue 9963), which SLURM sends to all processes of a job.
    """
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown(1)


def wandb_mode(settings: TrackingConfig) -> str:
    """online, offline or disabled: `auto` is what WANDB_MODE says, else online for who is logged in, else offline."""
    if settings.wandb != "auto":
        return settings.wandb
    if "WANDB_MODE" in os.environ:
        mode = os.environ["WANDB_MODE"]
        return {"run": "online", "dryrun": "offline"}.get(mode, mode)
    import wandb
    from requests.utils import get_netrc_auth

    logged_in = os.environ.get("WANDB_API_KEY") or get_netrc_auth(wandb.Settings().base_url)
    return "online" if logged_in else "offline"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _start_wandb(config: Config, facts: dict[str, Any], mode: str, run_id: str | None) -> Any:
    """W&B's run: a new one, or one that goes on. None, with a warning, if W&B cannot."""
    import wandb

    try:
        run = wandb.init(
            dir=str(config.run_dir),
            project=config.tracking.project,
            name=config.name,
            group=config.tracking.group,
            tags=config.tracking.tags,
            config={**to_dict(config), "world_size": facts["world_size"], "precision": facts["precision"]},
            mode=mode,  # type: ignore[arg-type]
            id=run_id,
            resume="allow" if run_id is not None and mode == "online" else None,
            settings=wandb.Settings(silent=True, console="off", init_timeout=60),
        )
    except Exception as error:
        print(f"warning: W&B could not start, the run goes on without it: {error}", file=sys.stderr)
        return None
    for stage in ("lm", "classifier"):
        run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
    return run


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(summary, dict) and isinstance(summary.get("seconds", {}), dict)
    return summary if is_ours else {}


def _check_writable(folder: Path) -> None:
    """Raise UserError if the folder could not be made, without making it: the input may yet be refused."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{folder}: {existing} cannot be written: set runs_dir to a folder of yours")


def _stage_of(line: str) -> str | None:
    """The stage that a line of metrics.jsonl is of; None for a line cut short by a killed run."""
    try:
        return str(json.loads(line)["stage"])
    except (ValueError, KeyError, TypeError):
        return None


def _lines_of_others(path: Path, stage: str) -> str:
    """The lines of metrics.jsonl that are not of this stage."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return "".join(f"{line}\n" for line in lines if _stage_of(line) not in (stage, None))
