"""Process-wide W&B state: mode, server reachability, service process.

Trade-off: some calls use internals of wandb, which has no public API for them.
"""

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
    """Return online, offline or disabled. `auto` is the mode of WANDB_DISABLED or WANDB_MODE, else online after a login.

    Raises:
        UserError: W&B rejects WANDB_MODE or another of its variables.
    """
    mode = settings.wandb_mode if settings.wandb_mode != "auto" else mode_of_environment(os.environ)
    if mode is not None:
        return mode
    wandb = quiet_wandb()
    try:
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except wandb.Error as error:
        warn(f"no login to W&B ({on_one_line(error)}): the run continues offline")
        return "offline"


def quiet_wandb() -> Any:
    """Return the package wandb with its messages off, unless WANDB_SILENT is set. Raises UserError for invalid variables."""
    import wandb

    for name in [name for name in os.environ if name.startswith("WANDB_") and not os.environ[name].strip()]:
        del os.environ[name]  # wandb rejects empty values
    check_variables(os.environ)
    wandb.setup(wandb.Settings() if "WANDB_SILENT" in os.environ else wandb.Settings(silent=True))
    return wandb


def why_unreachable(seconds: float) -> str | None:
    """Return the reason why W&B's server does not answer within some seconds; None if it sends any response."""
    import requests

    address = quiet_wandb().setup().settings.base_url
    try:
        requests.head(address, timeout=seconds)
    except requests.RequestException as error:
        return f"{address}: {type(error).__name__}"
    return None


def stop_telemetry() -> None:
    """Disable wandb's telemetry, which would delay the exit of this process if its server does not answer."""
    with suppress(Exception):  # internal to wandb, may differ between versions
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()


def shut_down(seconds: float) -> None:
    """Shut W&B down before this process exits, where W&B would wait, or print a traceback after a failure.

    Its service process exits at SIGTERM (wandb issue 9963), which SLURM sends to all processes of a job.

    Args:
        seconds: time limit before the service process is killed.
    """
    import wandb

    def tear_down() -> None:
        with suppress(Exception, SystemExit):
            wandb.teardown(1)

    thread = Thread(target=tear_down, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        kill_service_process()
        thread.join(seconds)


def kill_service_process() -> None:
    """Kill the service process of wandb, which no longer responds."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.name().startswith("wandb"):
                child.kill()


def warn(message: str) -> None:
    logger.warning(message)


def on_one_line(error: Exception) -> str:
    """Return the message of an error on one line of at most 300 characters."""
    return " ".join(f"{error}".split())[:300] or type(error).__name__
