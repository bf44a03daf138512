"""Ranks and devices of a run.

`Runtime` holds Accelerate's `Accelerator` and adds errors that all ranks raise together, so that no rank waits for one that
has failed; detection of dead ranks (`heartbeat.py`); and collectives. It is the only source of rank, device and precision:
other packages read no launch variables. The trade-off: one object that most functions take as a parameter.
"""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from multiprocessing.util import Finalize
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ulmfit_dist.distributed import signals
from ulmfit_dist.distributed.collectives import Collectives
from ulmfit_dist.distributed.env import is_restart, rank_name, silence_warnings
from ulmfit_dist.distributed.heartbeat import HeartbeatMonitor, start_monitor
from ulmfit_dist.errors import RankLostError, ResumableInterrupt, UserError
from ulmfit_dist.utils.log import console_by_default, get_logger, print_line
from ulmfit_dist.utils.spawn_guard import refuse_in_worker

logger = get_logger(__name__)

if TYPE_CHECKING:
    from ulmfit_dist.config.schema import RuntimeConfig


class Runtime(Collectives):
    """Rank, device, precision and process group of this process. As a context manager it leaves the group at the end.

    Attributes:
        accelerator: Accelerate's object, for everything that is not here.
        rank: index of this process.
        world_size: number of processes.
        device: device of this rank.
        precision: "fp32", "bf16", "fp16" or "fp64": the value that runtime.precision resolves to.
        settings: the runtime section of the config, with the launcher's precision in place of `auto`.
        launch: settings of the launcher.
        step_timer: time of this rank by part of a step.
        bytes_given: bytes that this rank has contributed to sums over all ranks.
        micro_batch_size: largest size that fits the memory; None until a step runs out of memory.
        heartbeat: connections to the other ranks; None on one process, or if the network does not allow them.
    """

    precision: str

    def __init__(self, settings: RuntimeConfig, run_dir: Path | None = None, keeps_group: bool = False):
        """Join the process group that the launcher describes; on one process there is none.

        Args:
            run_dir: run directory; with `precision: auto`, a run resumes in the precision of its checkpoints.
            keeps_group: keep the process group open for another `Runtime`, between calls of a script.

        Raises:
            UserError: if torch cannot use the GPU; the device lacks the precision or the gradient compression; launcher and
                settings contradict each other; or this is a tokenizer worker.
        """
        refuse_in_worker()
        from ulmfit_dist.distributed.devices import uses_gpu
        from ulmfit_dist.distributed.launch_settings import read_launch_settings
        from ulmfit_dist.distributed.numerics import configure_numerics, limit_threads_of_fork
        from ulmfit_dist.distributed.process_group import accelerate_states, set_accelerate_states

        silence_warnings()
        limit_threads_of_fork()
        console_by_default()
        self.keeps_group = keeps_group
        has_gpu = uses_gpu()
        self.launch = read_launch_settings()
        self.settings = self.launch.applied_to(settings, has_gpu)
        self._earlier_states = accelerate_states()
        set_accelerate_states(({}, {}))  # earlier runtimes keep their states, and so their precision
        try:
            self._join(has_gpu, run_dir)
        except UserError:
            set_accelerate_states(self._earlier_states)
            raise
        self._states = accelerate_states()
        self.activate()
        configure_numerics(self.settings, self.precision, has_gpu)
        self.heartbeat = self._start_heartbeat() if self.world_size > 1 else None

    def _join(self, has_gpu: bool, run_dir: Path | None) -> None:
        """Join the other ranks, agree on a precision, and build the accelerator."""
        from ulmfit_dist.distributed.accelerator import build_accelerator
        from ulmfit_dist.distributed.precision import agree_on_precision, check_compression, resolve_precision
        from ulmfit_dist.distributed.process_group import control_group, join_process_group
        from ulmfit_dist.distributed.step_timer import StepTimer

        settings = self.settings
        local_precision = resolve_precision(settings.precision, has_gpu)
        processes = join_process_group(has_gpu, settings.join_timeout)
        self.rank = processes.process_index
        self.world_size = processes.num_processes
        self.device = processes.device
        self._control = control_group(self.device)
        self.step_timer, self.bytes_given = StepTimer(self.device), 0
        self.micro_batch_size: int | None = None
        self.launch.check_agreement(self.all_gather_object(self.launch))
        earlier_run = run_dir if settings.precision == "auto" else None
        self.precision = agree_on_precision(self, local_precision, earlier_run, has_gpu)
        check_compression(settings.gradient_compression, self.precision, has_gpu)
        self.accelerator = build_accelerator(self.precision, settings.gradient_compression, has_gpu)

    def activate(self) -> None:
        """Restore this runtime's device and precision as those of the process, after another runtime was created."""
        from ulmfit_dist.distributed.numerics import set_default_dtype
        from ulmfit_dist.distributed.process_group import set_accelerate_states

        set_accelerate_states(self._states)
        set_default_dtype(self.precision)

    def reset_grad_scaler(self) -> None:
        """Reset loss scaling, if there is any, to its initial state, so that stages do not depend on earlier ones."""
        if self.accelerator.scaler is not None:
            import torch

            self.accelerator.scaler = torch.amp.GradScaler(self.device.type)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> str:
        """Name of this rank in messages."""
        return rank_name()

    @property
    def is_restart(self) -> bool:
        """True if all ranks were restarted: by the launcher after a failure, or by SLURM as a requeued job."""
        return is_restart()

    @property
    def job(self) -> str:
        """Identifier of the launch, which stays the same over restarts."""
        return os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID", "")

    @property
    def is_local_main(self) -> bool:
        """True on the first rank of each node."""
        return bool(self.accelerator.is_local_main_process)

    def print(self, *values: object) -> None:
        """Print a result on rank 0, whatever the logging level."""
        if self.is_main:
            print_line(*values)

    def _start_heartbeat(self) -> HeartbeatMonitor | None:
        """Connect all ranks; warn and continue without if the network does not allow it."""
        monitor, error = start_monitor(self, self.name, os.environ.get("MASTER_ADDR"))
        if error is not None:
            logger.warning(f"no heartbeat connections between the ranks ({error}): a rank that dies may go unnoticed")
        return monitor

    def register_shutdown(self) -> None:
        """Notify the other ranks when this process exits, for callers that keep the runtime until then."""
        if self.heartbeat is not None:
            Finalize(None, _close, (self.heartbeat,), exitpriority=1)  # also called by forked processes

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the process group. After success or a collective error, all ranks leave together.

        Progress is saved by then, so signals of a scheduler are ignored here, except in a script with further calls.

        Raises:
            RankLostError: instead of the error of a collective, if another rank has died.
        """
        with nullcontext() if self.keeps_group else signals.saved():
            self._leave_group(error)

    def _leave_group(self, error: BaseException | None) -> None:
        from ulmfit_dist.distributed.numerics import set_default_dtype
        from ulmfit_dist.distributed.process_group import abandon_process_group, forget_control_group, set_accelerate_states

        set_default_dtype()
        is_local_error = error is not None and not getattr(error, "is_collective", False)
        if not is_local_error:
            self.barrier()
        loss = None
        if self.heartbeat is not None:
            if is_local_error and not _is_root_cause(error):
                loss = self.heartbeat.loss(patience=2)
            self.heartbeat.close(f"{type(error).__name__}: {error}" if is_local_error else None)
        if self.keeps_group:
            set_accelerate_states(self._earlier_states)  # notebook_launcher expects a process without states
        elif is_local_error:
            abandon_process_group()
        elif error is None or isinstance(error, (UserError, ResumableInterrupt)):
            self._control = None
            forget_control_group()
            self.accelerator.free_memory()  # modules of a fit that raised an error hold the group
            self.accelerator.end_training()
        if loss is not None:
            raise RankLostError(loss) from error


def _is_root_cause(error: BaseException | None) -> bool:
    """Return whether an error started on this rank. A signal that arrives while another error unwinds did not.

    A launcher signals all ranks as soon as one of them is dead.
    """
    if isinstance(error, ResumableInterrupt):
        return not isinstance(error.__context__, Exception)
    return isinstance(error, UserError)


def _close(monitor: HeartbeatMonitor) -> None:
    error = getattr(sys, "last_value", None)  # the exception that ended the interpreter
    monitor.close(None if error is None else f"{type(error).__name__}: {error}")
