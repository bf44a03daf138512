"""Checks of external services: Weights & Biases, and SLURM."""

from __future__ import annotations

import os

from ulmfit_dist.doctor.checks import Context, Finding, failure, ok, skipped, warning
from ulmfit_dist.tracking.wandb_process import quiet_wandb, wandb_mode, why_unreachable

SECONDS = 10.0
"""Time limit for W&B's server, in seconds."""


def check_wandb(context: Context) -> Finding:
    """Check mode, login and server of W&B, on rank 0 only."""
    if context.rank != 0:
        return skipped("only rank 0 logs to W&B")
    mode = wandb_mode(context.config.tracking)
    setting = f"tracking.wandb_mode={context.config.tracking.wandb_mode}"
    if mode != "online":
        return ok(f"{setting} resolves to {mode}")
    if not quiet_wandb().login(prompt=False, verify=False):
        return failure(f"{setting}: no login", "run `wandb login`, or set WANDB_API_KEY, or tracking.wandb_mode=offline")
    if (reason := why_unreachable(SECONDS)) is not None:
        return warning(
            f"{setting} resolves to online, but the server cannot be reached ({reason})",
            "set tracking.wandb_mode=offline and run `wandb sync` later, or allow the connection",
        )
    return ok(f"{setting} resolves to online, logged in, server reachable")


def check_slurm(context: Context) -> Finding:
    """Compare SLURM's variables with the ranks that were started."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return skipped("no SLURM job")
    nodes = os.environ.get("SLURM_JOB_NUM_NODES") or os.environ.get("SLURM_NNODES", "1")
    gpus = os.environ.get("SLURM_GPUS_ON_NODE")
    details = (
        f"job {job}, {nodes} node(s), {gpus or 'no'} GPU(s) on this node, restart {os.environ.get('SLURM_RESTART_COUNT', 0)}"
    )
    on_node = os.environ.get("LOCAL_WORLD_SIZE")
    if nodes.isdecimal() and context.world_size < int(nodes):
        return warning(
            f"{details}; {context.world_size} rank(s): fewer than nodes", "start ranks on all nodes: `ulmfit-dist submit`"
        )
    if gpus and gpus.isdecimal() and on_node and on_node.isdecimal() and int(on_node) < int(gpus):
        return warning(f"{details}; {on_node} rank(s) on this node", f"start {gpus} ranks per node: one per GPU")
    return ok(details)
