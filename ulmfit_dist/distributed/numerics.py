"""Process-wide numerics of torch: threads, default dtype, TF32, deterministic algorithms, anomaly detection.

These are global switches of the process, not attributes of a run. All of them are set here, so that their order and their
scope are visible in one place. The trade-off: two runtimes in one process share them; only the default dtype follows the
active runtime (`Runtime.activate`).
"""

from __future__ import annotations

import os
from multiprocessing import current_process
from multiprocessing.context import ForkProcess
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ulmfit_dist.config.schema import RuntimeConfig


def limit_threads_of_fork() -> None:
    """Use one thread in a forked process, such as those of notebook_launcher.

    The OpenMP threads of the parent do not exist in the fork, which would wait for them.
    """
    if isinstance(current_process(), ForkProcess):
        torch.set_num_threads(1)


def set_default_dtype(precision: str = "fp32") -> None:
    """Set the dtype of new parameters: fp64 in precision "fp64", else fp32."""
    torch.set_default_dtype(torch.float64 if precision == "fp64" else torch.float32)


def configure_numerics(settings: RuntimeConfig, precision: str, has_gpu: bool) -> None:
    """Set TF32, deterministic algorithms and anomaly detection.

    Args:
        settings: the runtime section of the config.
        precision: the resolved precision.
    """
    if has_gpu and precision == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # on by default, and cuDNN's LSTMs would round to 10 bits of mantissa
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.autograd.set_detect_anomaly(settings.detect_anomaly)
