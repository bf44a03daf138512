"""What of W&B there is once in a process: whether it is online, its server, and the process that it starts beside ours."""

from __future__ import annotations

import os
from contextlib import suppress
from threading import Thread
from typing import Any

import psutil

from ulmfit_dist.config.schema import TrackingConfig
from ulmfit_dist.tracking.wandb_environment import check_variables, mode_of_environment
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


def wandb_mode(settings: TrackingConfig) -> str:
    """online, offline or disabled: `auto` is what WANDB_DISABLED or WANDB_MODE says, else online for who is logged in.

    Raises:
        UserError: WANDB_MODE is none of W&B's, or W&B does not take another variable of its own.
    """
    mode = settings.wandb_mode if settings.wandb_mode != "auto" else mode_of_environment(os.environ)
    if mode is not None:
        return mode
    wandb = quiet_wandb()
    try:
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except wandb.Error as error:
        warn(f"no login to W&B ({on_one_line(error)}): the run goes on offline")
        return "offline"


def quiet_wandb() -> Any:
    """The package wandb, its messages off unless WANDB_SILENT says otherwise. Raises UserError for a wrong variable."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_") and not os.environ[name].strip()]:
        del os.environ[name]  # wandb takes an empty one for a value, and refuses it
    check_variables(os.environ)
    wandb.setup(wandb.Settings() if "WANDB_SILENT" in os.environ else wandb.Settings(silent=True))
    return wandb


def why_unreachable(seconds: float) -> str | None:
    """Why W&B's server does not answer within some seconds; None where it does, whatever it says."""
    import requests

    address = quiet_wandb().setup().settings.base_url
    try:
        requests.head(address, timeout=seconds)
    except requests.RequestException as error:
        return f"{address}: {type(error).__name__}"
    return None


def stop_telemetry() -> None:
    """Have wandb send no measurements of itself: at its end this process would wait for a server that never answers."""
    with suppress(Exception):  # it is wandb's own affair, and may look different in another version
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()


def leave(seconds: float) -> None:
    """End what is left of W&B, which would report a failure with a traceback at the end of this process, or wait there.

    Its own process ends at a SIGTERM (wandb issue 9963), which SLURM sends to all processes of a job.

    Args:
        seconds: to wait for it, before it is killed.
    """
    import wandb

    def tear_down() -> None:
        with suppress(Exception, SystemExit):
            wandb.teardown(1)

    thread = Thread(target=tear_down, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        kill_wandbs_process()
        thread.join(seconds)


def kill_wandbs_process() -> None:
    """End the process that wandb has started beside this one, which answers no more."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name().startswith("wandb"):
                child.kill()


def warn(message: str) -> None:
    logger.warning(message)


def on_one_line(error: Exception) -> str:
    return " ".join(f"{error}".split())[:300] or type(error).__name__
