"""Launch variables, warnings filter and messages of a process, available before torch is imported.

`distributed/` is the only package that reads launch variables. This module imports no torch, so that a command that needs
none starts quickly.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ulmfit_dist.errors import UserError
from ulmfit_dist.utils import log

DEVICES = ("auto", "cpu", "cuda")
"""Choices of `--device`: `auto` is a GPU if one is visible, else the CPU."""
TRUE, FALSE = ("1", "y", "yes", "t", "true", "on"), ("0", "n", "no", "f", "false", "off")
"""Values of boolean launch variables, as parsed by Accelerate, in lower case."""


def is_main_process() -> bool:
    """Return whether this process is rank 0."""
    return log.is_main_process()


def silence_warnings() -> None:
    """Hide harmless warnings of other libraries, and all warnings on ranks other than 0, which would repeat them."""
    if not is_main_process():
        warnings.simplefilter("ignore")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def wants_cpu(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether ACCELERATE_USE_CPU is true: compute on CPUs, even if GPUs are visible.

    Args:
        environ: an environment; None: the environment of this process.

    Raises:
        UserError: if the value is neither true nor false.
    """
    value = (os.environ if environ is None else environ).get("ACCELERATE_USE_CPU", "false")
    if value.lower() not in (*TRUE, *FALSE):
        raise UserError(f"ACCELERATE_USE_CPU={value!r}: give true or false")
    return value.lower() in TRUE


@contextmanager
def chosen_device(device: str) -> Iterator[None]:
    """Compute on this device inside the context: `--device` of a command, which sets ACCELERATE_USE_CPU.

    Args:
        device: one of `DEVICES`; "auto" leaves the environment as it is.

    Raises:
        UserError: "cuda", but there is no usable GPU, or the environment or the launcher chooses CPUs.
    """
    before = os.environ.get("ACCELERATE_USE_CPU")
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif device == "cuda":
        _require_gpu()
    try:
        yield
    finally:
        if device == "cpu":
            os.environ.pop("ACCELERATE_USE_CPU")
            os.environ.update({} if before is None else {"ACCELERATE_USE_CPU": before})


def _require_gpu() -> None:
    from ulmfit_dist.distributed.devices import launcher_wants_cpu, uses_gpu

    if wants_cpu() or launcher_wants_cpu():
        raise UserError("--device cuda, but ACCELERATE_USE_CPU=true: unset it, or leave out --device")
    if not uses_gpu():
        raise UserError("--device cuda: no GPU is visible: check nvidia-smi and CUDA_VISIBLE_DEVICES, or give --device cpu")


def num_processes() -> int:
    """Return the number of processes of the launch, before they meet; 1 without a launcher."""
    value = os.environ.get("WORLD_SIZE", "1")
    return int(value) if value.isdecimal() else 1


def rank_name() -> str:
    """Return the name of this process in messages: rank, host and process id."""
    return f"rank {os.environ.get('RANK', '0')} ({socket.gethostname()}, process {os.getpid()})"


def attempt() -> str:
    """Return the number of restarts of this node's ranks by torchrun, and so by `accelerate launch`."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def is_restart() -> bool:
    """Return whether all ranks were restarted: by the launcher after a failure, or by SLURM as a requeued job."""
    return attempt() != "0" or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def report(message: object) -> None:
    """Print one line to standard error, on the first rank of each node."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"ulmfit-dist: {message}", file=sys.stderr, flush=True)


def report_error(error: BaseException) -> None:
    """Print an error in the format of `report`."""
    report(f"error: {error}")
