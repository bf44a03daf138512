"""W&B dashboard as code: a saved view with the panels of both training stages.

The view has a fixed address, so saving it again replaces it. Trade-off: changes made to it in the browser are lost. Each
panel names its metrics and its step axis, because W&B's own axis counts the rows of both stages. GPUs and layer groups are
listed instead of matched by a pattern; W&B does not draw a metric that no run has.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import Any, NamedTuple

from ulmfit_dist.config.schema import Config
from ulmfit_dist.distributed.step_timer import PARTS
from ulmfit_dist.errors import UserError
from ulmfit_dist.tracking.wandb_environment import wandb_project
from ulmfit_dist.tracking.wandb_process import quiet_wandb, shut_down, stop_telemetry

NAME = "ulmfit-dist"
"""Displayed name of the view."""
ADDRESS = "ulmfitdist"
"""Address of the view: `nw=ulmfitdist` at the end of the project's URL."""
VIEW = f"nw-{ADDRESS}-v"
"""Internal name of the view in W&B."""
STAGES = {"lm": "language model", "classifier": "classifier"}
UNITS = {"lm": "tokens", "classifier": "examples"}
GPUS = 8
"""Maximum number of GPUs per node; W&B samples those of rank 0's node."""
TIMEOUT = 20
"""Time limit for W&B's API, in seconds."""
SHUTDOWN_SECONDS = 10
"""Time limit for W&B's service process after a failure, in seconds: without one it may never end."""
TIME = "RelativeTime(Process)"
"""X axis of system metrics, which are sampled by wall time."""


class Plot(NamedTuple):
    """Line plot of metrics over an axis; stacked metrics add up."""

    title: str
    x: str
    metrics: list[str]
    stacked: bool = False
    log: bool = False


def dashboard(config: Config, entity: str | None, dry_run: bool) -> str:
    """Save the dashboard of the config's project, or return it as JSON.

    Args:
        config: tracking.project is the project of the dashboard, tracking.group groups its runs, and model.n_layers sets
            the number of layer groups. WANDB_PROJECT and WANDB_RUN_GROUP replace defaults.
        entity: user or team of the project; None: WANDB_ENTITY, or the default of the login.
        dry_run: return the JSON of the view without saving it.

    Returns:
        The JSON, or the dashboard's URL.

    Raises:
        UserError: wandb-workspaces is not installed, there is no login, or W&B does not answer or rejects the dashboard.
    """
    project = wandb_project(config.tracking, os.environ)
    entity = entity or os.environ.get("WANDB_ENTITY") or None
    workspace = _workspace(config, entity or "", project)
    if dry_run:
        spec = workspace._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        view = {"entity": entity, "project": project, "name": VIEW, "displayName": NAME, "spec": spec}
        return json.dumps(view, indent=1)
    return _save(workspace)


def sections(config: Config) -> dict[str, list[Plot]]:
    """Return the line plots of each section, in order."""
    groups = {"lm": config.model.n_layers + 1, "classifier": config.model.n_layers + 2}
    optimization: list[Plot] = []
    for stage, name in STAGES.items():
        rates = [f"{stage}/learning_rate_{group}" for group in range(groups[stage])]
        optimization.append(Plot(f"Learning rates of the layer groups, {name}", f"{stage}/step", rates, log=True))
        for metric in ("momentum", "gradient_norm"):
            optimization.append(_of_step(metric.replace("_", " ").capitalize(), stage, metric))
    return {
        "Language model": [
            Plot("Perplexity", "lm/epoch", ["lm/perplexity"]),
            Plot("Accuracy of the next token", "lm/epoch", ["lm/accuracy"]),
            *_losses("lm"),
        ],
        "Classifier": [
            Plot("Accuracy", "classifier/epoch", ["classifier/accuracy"]),
            Plot("Macro-F1", "classifier/epoch", ["classifier/f1_macro"]),
            *_losses("classifier"),
        ],
        "Optimization": optimization,
        "Throughput": [
            _of_step(f"{UNITS[stage].capitalize()} per second", stage, f"{UNITS[stage]}_per_second") for stage in STAGES
        ],
        "Time of a step": [
            Plot(f"Seconds of a step, {name}", f"{stage}/step", [f"{stage}/{part}_seconds" for part in PARTS], stacked=True)
            for stage, name in STAGES.items()
        ]
        + [_of_step("Exchanged in a step, MB", stage, "communication_mb") for stage in STAGES],
        "Memory": [_of_step("Memory, GB", stage, "memory_gb") for stage in STAGES],
        "System": [
            Plot("GPU utilization, %", TIME, _of_gpus("gpu")),
            Plot("GPU memory, %", TIME, _of_gpus("memoryAllocated")),
            Plot("GPU power, W", TIME, _of_gpus("powerWatts")),
            Plot("GPU temperature, °C", TIME, _of_gpus("temp")),
            Plot("CPU, %", TIME, ["system/cpu"]),
            Plot("Memory of the machine, %", TIME, ["system/memory_percent"]),
            Plot("Memory of rank 0, MB", TIME, ["system/proc.memory.rssMB"]),
            Plot("Network, bytes", TIME, ["system/network.sent", "system/network.recv"]),
        ],
    }


def _losses(stage: str) -> list[Plot]:
    return [
        Plot("Loss", f"{stage}/step", [f"{stage}/loss", f"{stage}/loss_smoothed"]),
        Plot("Loss per epoch", f"{stage}/epoch", [f"{stage}/train_loss", f"{stage}/valid_loss"]),
    ]


def _of_step(title: str, stage: str, metric: str) -> Plot:
    return Plot(f"{title}, {STAGES[stage]}", f"{stage}/step", [f"{stage}/{metric}"])


def _of_gpus(metric: str) -> list[str]:
    return [f"system/gpu.{gpu}.{metric}" for gpu in range(GPUS)]


def _workspace(config: Config, entity: str, project: str) -> Any:
    """Return the dashboard as a `wandb_workspaces` Workspace."""
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise UserError("dashboards need the package wandb-workspaces: pip install 'ulmfit-dist[wandb-dashboard]'") from None
    results = [f"summary:{metric}" for metric in ("lm/perplexity", "classifier/accuracy", "classifier/f1_macro")]
    workspace = ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=name, panels=[_panel(name, plot) for plot in plots], is_open=name != "System")
            for name, plots in sections(config).items()
        ],
        runset_settings=ws.RunsetSettings(
            groupby=[ws.Metric("Group")] if config.tracking.group or os.environ.get("WANDB_RUN_GROUP") else [],
            pinned_columns=["run:displayName", "run:group", *results],
        ),
    )
    workspace._internal_name = VIEW
    return workspace


def _panel(section: str, plot: Plot) -> Any:
    import wandb_workspaces.reports.v2 as wr

    panel = wr.LinePlot(
        title=plot.title,
        x=plot.x,
        y=[*plot.metrics],
        log_y=plot.log or None,
        plot_type="stacked-area" if plot.stacked else None,
    )
    panel._id = f"{zlib.crc32(f'{section}/{plot.title}'.encode()):08x}"  # deterministic; the default id is random
    return panel


def _save(workspace: Any) -> str:
    """Save the dashboard, replacing an earlier one, and return its URL."""
    import wandb

    quiet_wandb()
    try:
        workspace.entity = workspace.entity or wandb.Api(timeout=TIMEOUT).default_entity
        workspace._internal_id = _saved_id(workspace.entity, workspace.project)
        return str(workspace.save().url)
    except wandb.errors.UsageError:
        raise UserError("no login to W&B: run `wandb login`, or set WANDB_API_KEY; --dry-run needs neither") from None
    except Exception as error:  # errors of wandb's service process and its server have no common class
        reason = " ".join(str(error).split()).rstrip(".")
        stop_telemetry()
        shut_down(SHUTDOWN_SECONDS)
        raise UserError(f"W&B rejects the dashboard: {reason}: check `wandb status`, or run `wandb login` again") from None


def _saved_id(entity: str, project: str) -> str:
    """Return the id of the saved view; empty if it was never saved."""
    from wandb_workspaces.workspaces import internal

    try:
        return str(internal.get_view_dict(entity, project, ADDRESS)["id"])
    except ValueError:
        return ""
