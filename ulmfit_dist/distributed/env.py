"""What a process knows of itself, and says, before torch is imported: which rank it is, and what keeps it quiet.

With `runtime.py`, which needs torch, this is the one place that reads launch variables.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections.abc import Mapping

from ulmfit_dist.errors import UserError
from ulmfit_dist.utils import log

TRUE, FALSE = ("1", "y", "yes", "t", "true", "on"), ("0", "n", "no", "f", "false", "off")
"""Values of a launch variable that is a flag, as Accelerate reads them, in lower case."""


def is_main_process() -> bool:
    """Return whether this process is rank 0."""
    return log.is_main_process()


def silence_warnings() -> None:
    """Keep other libraries' harmless warnings from the user, and all that ranks other than the first would repeat."""
    if not is_main_process():
        warnings.simplefilter("ignore")
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


def wants_cpu(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether ACCELERATE_USE_CPU is true: compute on CPUs, even where there are GPUs.

    Args:
        environ: an environment; None: that of this process.

    Raises:
        UserError: a value that is neither true nor false.
    """
    value = (os.environ if environ is None else environ).get("ACCELERATE_USE_CPU", "false")
    if value.lower() not in (*TRUE, *FALSE):
        raise UserError(f"ACCELERATE_USE_CPU={value!r}: give true or false")
    return value.lower() in TRUE


def rank_name() -> str:
    """What messages call this process."""
    return f"rank {os.environ.get('RANK', '0')} ({socket.gethostname()}, process {os.getpid()})"


def attempt() -> str:
    """How often torchrun, and so `accelerate launch`, has started the ranks of this node again."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def is_restart() -> bool:
    """Whether all ranks were started again: by the launcher after one had failed, or by SLURM as a requeued job."""
    return attempt() != "0" or os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def report(message: object) -> None:
    """Print the line that a process ends with on standard error, on the first rank of each node."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"ulmfit-dist: {message}", file=sys.stderr, flush=True)


def report_error(error: BaseException) -> None:
    """Print the line of an error that a process ends with, as `report` does."""
    report(f"error: {error}")
