"""What a run leaves to be read: metrics.jsonl, summary.json, W&B's files, and a line per epoch in the terminal.

Only rank 0 writes. W&B gets one run for all stages, with a step axis of each stage's own. Without a login it writes its
files offline, for `wandb sync`; if W&B fails, training goes on without it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback

from ulmfit_dist.compose import to_dict, to_yaml
from ulmfit_dist.config import Config, TrackingConfig
from ulmfit_dist.data.store import write_bytes, write_json
from ulmfit_dist.errors import UserError
from ulmfit_dist.progress import Progress
from ulmfit_dist.runtime import Runtime


class Tracker:
    """The run directory, and the W&B run, of one training run. On ranks other than 0 all calls do nothing.

    Raises:
        UserError: the run directory cannot be written.
    """

    def __init__(self, config: Config, runtime: Runtime):
        self.config, self.runtime, self.folder = config, runtime, config.run_dir
        self.wandb: Any = None
        self.started = False
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

    def start_stage(self, stage: str) -> None:
        """Open the run directory and the W&B run; forget an earlier try of the stage. For when training is certain."""
        if not self.runtime.is_main:
            return
        if not self.started:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_bytes(self.folder / "config.yaml", to_yaml(self.config).encode())
            mode = wandb_mode(self.config.tracking)
            self.wandb = None if mode == "disabled" else _start_wandb(self.config, self.summary, mode)
            self.started = True
        _drop_lines(self.folder / "metrics.jsonl", stage)

    def drop_stage(self, stage: str) -> None:
        """Remove a stage's export and figures, because what it was built on has changed."""
        if self.runtime.is_main:
            shutil.rmtree(self.folder / stage, ignore_errors=True)
            self.summary.pop(stage, None)
            self.summary.get("seconds", {}).pop(stage, None)
            write_json(self.folder / "summary.json", self.summary)
            _drop_lines(self.folder / "metrics.jsonl", stage)

    def log(self, stage: str, position: dict[str, Any], metrics: dict[str, float]) -> None:
        """One line of metrics.jsonl: a position (phase, epoch, step, tokens) and metrics by W&B's names."""
        if not self.runtime.is_main:
            return
        named = {f"{stage}/{name}": value for name, value in metrics.items()}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"stage": stage, **position, **named}) + "\n")
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
        self.wandb = None

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
            print(f"warning: W&B failed, the run goes on without it: {error}", file=sys.stderr)
            self.wandb = None


class TrackingCallback(Callback):
    """Follows a fit: training loss and learning rate now and then, all metrics and a line in the terminal per epoch.

    Args:
        tracker: where it goes.
        unit: "tokens" or "examples": what throughput is counted in.
    """

    order, run_valid = 80, False

    def __init__(self, tracker: Tracker, unit: str):
        self.tracker, self.unit, self.runtime = tracker, unit, tracker.runtime
        self.tokens, self.train_seconds, self.trained = 0, 0.0, 0
        self.progress: Progress | None = None

    def before_train(self) -> None:
        device = self.runtime.device
        self.epoch_sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.recent_sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.started = time.perf_counter()
        self.epoch_trained = 0
        self.progress = Progress(self._label(), len(self.learn.dls.train), self.runtime.is_main)
        self.progress.__enter__()

    def after_batch(self) -> None:
        batches = self.learn.micro_batches
        weight = sum(batch.weight for batch in batches)  # of this rank in the global batch
        shares = torch.stack([self.learn.loss.double() * weight, self.epoch_sums.new_tensor(weight)])
        self.epoch_sums += shares
        self.recent_sums += shares
        self.tokens += batches[0].global_tokens
        self.epoch_trained += batches[0].global_tokens if self.unit == "tokens" else batches[0].global_rows
        assert self.progress is not None
        self.progress.advance()
        if self.learn.stage_step % self.tracker.config.tracking.log_every == 0:
            self._log_step()

    def after_train(self) -> None:
        self._close_progress()
        self.epoch_seconds = time.perf_counter() - self.started
        self.train_seconds += self.epoch_seconds
        self.trained += self.epoch_trained

    def after_cancel_train(self) -> None:
        self._close_progress()

    def after_epoch(self) -> None:
        loss, weight = self.runtime.sum(self.epoch_sums).tolist()
        if not math.isfinite(loss):
            raise UserError(
                f"{self._label()}: the training loss is {loss / weight}: lower the phase's lr, set grad_clip, "
                f"or try runtime.precision=no"
            )
        rate = self.epoch_trained / self.epoch_seconds
        metrics = {"train_loss": loss / weight, **self.learn.valid_metrics, f"{self.unit}_per_second": round(rate, 1)}
        self.tracker.log(self.learn.stage, self._position(), metrics)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items() if not name.endswith("_per_second"))
        self.runtime.print(f"{self._label():<34}{shown}  {rate:,.0f} {self.unit}/s  {self.epoch_seconds:.0f} s")

    def final_metrics(self) -> dict[str, float]:
        """What summary.json says of the stage."""
        return {**self.learn.valid_metrics, f"{self.unit}_per_second": round(self.trained / self.train_seconds, 1)}

    def _log_step(self) -> None:
        loss, weight = self.runtime.sum(self.recent_sums).tolist()
        self.recent_sums.zero_()
        metrics = {"train_loss": loss / weight, "learning_rate": self.learn.opt.hypers[-1]["lr"]}
        self.tracker.log(self.learn.stage, self._position(), metrics)

    def _position(self) -> dict[str, Any]:
        learn = self.learn
        return {"phase": learn.phase, "epoch": learn.stage_epoch, "step": learn.stage_step, "tokens": self.tokens}

    def _label(self) -> str:
        learn = self.learn
        return f"{learn.stage} phase {learn.phase + 1} epoch {learn.epoch + 1}/{learn.n_epoch}"

    def _close_progress(self) -> None:
        if self.progress is not None:
            self.progress.__exit__(None, None, None)
            self.progress = None


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


def _start_wandb(config: Config, facts: dict[str, Any], mode: str) -> Any:
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
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _check_writable(folder: Path) -> None:
    """Raise UserError if the folder could not be made, without making it: the input may yet be refused."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f"{folder}: {existing} cannot be written: set runs_dir to a folder of yours")


def _stage_of(line: str) -> str | None:
    """The stage that a line of metrics.jsonl is of; None for a line cut short by a killed run."""
    try:
        return str(json.loads(line)["stage"])
    except (ValueError, KeyError):
        return None


def _drop_lines(path: Path, stage: str) -> None:
    """Take a stage's lines out of metrics.jsonl."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _stage_of(line) not in (stage, None)]
        write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
