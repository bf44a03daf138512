"""Processes and devices: the one place that knows of ranks.

`Runtime` holds Accelerate's `Accelerator` and adds what a run needs around it: agreement of all ranks on an error, so
that none waits for one that has failed; news of a rank that has died (`heartbeat.py`); and sums over ranks. Everything else
asks it, and reads no launch variable.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import nullcontext
from multiprocessing import current_process
from multiprocessing.context import ForkProcess
from multiprocessing.util import Finalize
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ulmfit_dist.distributed import signals
from ulmfit_dist.distributed.collectives import Collectives
from ulmfit_dist.distributed.env import is_restart, rank_name, silence_warnings
from ulmfit_dist.distributed.heartbeat import HeartbeatMonitor, connect, open_listener, watch_from_main
from ulmfit_dist.errors import RankLostError, ResumableInterrupt, UserError
from ulmfit_dist.utils.log import console_by_default, get_logger, print_line
from ulmfit_dist.utils.spawn_guard import refuse_in_worker

logger = get_logger(__name__)

if TYPE_CHECKING:
    from ulmfit_dist.config.schema import RuntimeConfig


class Runtime(Collectives):
    """This process among all of them. As a context manager it leaves the process group at the end.

    Attributes:
        accelerator: Accelerate's own object, for what is not here.
        rank, world_size: this process and how many there are.
        device: where this rank computes.
        precision: "fp32", "bf16", "fp16" or "fp64": what runtime.precision came to on this machine.
        settings: the runtime section of the config, with the precision that the launcher names where it is `auto`.
        launch: what the launcher names.
        laps: where this rank's time goes.
        bytes_given: what this rank has given to sums over all ranks.
        micro_batch_size: the largest that the memory has room for; None as long as no step has run out of memory.
    """

    def __init__(self, settings: RuntimeConfig, run_dir: Path | None = None, keeps_group: bool = False):
        """Join the process group that the launcher describes; on one process there is none.

        Args:
            run_dir: of a run that may have begun: with `precision: auto` it goes on in the precision of its checkpoints.
            keeps_group: whether the process group outlives this, for another `Runtime` in it: between calls of a script.

        Raises:
            UserError: a GPU that torch cannot use; a precision, or a compression of gradients, that the device does not
                have; a value that the launcher names and the settings contradict; a worker process that tokenizes.
        """
        refuse_in_worker()
        import torch

        # Its functions' default arguments hold the process group that exists at its import. Imported later, by DDP, it
        # would keep the group's threads alive past the end, where they may abort the process (pytorch issue 190489).
        import torch.distributed.nn.functional

        from ulmfit_dist.distributed.devices import uses_gpu
        from ulmfit_dist.distributed.launch_settings import read_launch_settings
        from ulmfit_dist.distributed.process_group import accelerate_states, set_accelerate_states

        silence_warnings()
        if isinstance(current_process(), ForkProcess):  # as those of notebook_launcher
            torch.set_num_threads(1)  # OpenMP's threads were left behind in the parent, and would be waited for
        console_by_default()
        self.keeps_group = keeps_group
        has_gpu = uses_gpu()
        self.launch = read_launch_settings()
        self.settings = settings = self.launch.applied_to(settings, has_gpu)
        self._earlier_states = accelerate_states()
        set_accelerate_states(({}, {}))  # earlier runtimes keep theirs, and so their precision
        try:
            self._join(has_gpu, run_dir)
        except UserError:
            set_accelerate_states(self._earlier_states)
            raise
        self._states = accelerate_states()
        self.activate()
        if has_gpu and self.precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # which cuDNN's LSTMs would use, with a tenth of the digits
        if settings.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        torch.autograd.set_detect_anomaly(settings.detect_anomaly)
        self._watch = self._start_watch() if self.world_size > 1 else None

    def _join(self, has_gpu: bool, run_dir: Path | None) -> None:
        """Join the other ranks, agree on a precision, and make the accelerator."""
        from accelerate import Accelerator, DistributedDataParallelKwargs
        from accelerate.utils import DDPCommunicationHookType

        from ulmfit_dist.distributed.precision import check_compression, resolve_precision
        from ulmfit_dist.distributed.process_group import control_group, join_process_group
        from ulmfit_dist.distributed.step_timer import StepTimer

        settings = self.settings
        precision = resolve_precision(settings.precision, has_gpu)
        processes = join_process_group(has_gpu, settings.join_timeout)
        self.rank = processes.process_index
        self.world_size = processes.num_processes
        self.device = processes.device
        self._control = control_group(self.device)
        self.step_timer, self.bytes_given = StepTimer(self.device), 0
        self.micro_batch_size: int | None = None
        self.launch.check_agreement(self.all_gather_object(self.launch))
        self.precision = self._agreed(precision, run_dir if settings.precision == "auto" else None, has_gpu)
        check_compression(settings.gradient_compression, self.precision, has_gpu)
        hook = DDPCommunicationHookType(settings.gradient_compression or "no")
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False, comm_hook=hook, gradient_as_bucket_view=True)
        mixed = self.precision if self.precision in ("bf16", "fp16") else "no"
        self.accelerator = Accelerator(mixed_precision=mixed, cpu=not has_gpu, kwargs_handlers=[ddp])

    def activate(self) -> None:
        """Make this runtime's device and precision the process's again, where another runtime has been made since."""
        import torch

        from ulmfit_dist.distributed.process_group import set_accelerate_states

        set_accelerate_states(self._states)
        torch.set_default_dtype(torch.float64 if self.precision == "fp64" else torch.float32)

    def reset_grad_scaler(self) -> None:
        """Have losses scaled as at the start of a run, where they are scaled at all: a stage begins with no past."""
        if self.accelerator.scaler is not None:
            import torch

            self.accelerator.scaler = torch.amp.GradScaler(self.device.type)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def name(self) -> str:
        """What messages call this rank."""
        return rank_name()

    @property
    def is_restart(self) -> bool:
        """Whether all ranks were started again: by the launcher after one had failed, or by SLURM as a requeued job."""
        return is_restart()

    @property
    def job(self) -> str:
        """What has started the ranks: it stays the same when they are started again."""
        return os.environ.get("SLURM_JOB_ID") or os.environ.get("TORCHELASTIC_RUN_ID", "")

    @property
    def is_local_main(self) -> bool:
        """Whether this is the first rank of its node."""
        return self.accelerator.is_local_main_process

    def print(self, *values: object) -> None:
        """Print a result on rank 0, whatever the logging level."""
        if self.is_main:
            print_line(*values)

    def _agreed(self, precision: str, run_dir: Path | None, has_gpu: bool) -> str:
        """The precision that all ranks compute in: that of the run's checkpoints, else what every rank can do."""
        from ulmfit_dist.distributed.precision import common_precision, has_bf16_lstms, precision_of_run

        found = common_precision(self.all_gather_object(precision))
        earlier = self.broadcast_object(precision_of_run(run_dir) if run_dir is not None and self.is_main else None)
        have_bf16 = all(self.all_gather_object(has_gpu or has_bf16_lstms()))
        possible = {"fp32": True, "bf16": have_bf16, "fp16": has_gpu}
        return earlier if earlier is not None and possible.get(earlier) else found

    def _start_watch(self) -> HeartbeatMonitor | None:
        """Watch each other; where the network does not allow it, say so and do without."""
        hosts = self.all_gather_object(socket.gethostname())
        all_here = len(set(hosts)) == 1
        door, port, secret = open_listener(all_here) if self.is_main else (None, 0, "")
        host = "127.0.0.1" if all_here else os.environ.get("MASTER_ADDR", hosts[0])
        address = self.broadcast_object((host, port, secret, self.name))
        watch, error = None, None
        try:
            watch = connect(self.name, address) if door is None else watch_from_main(door, address, self.world_size)
        except OSError as refused:
            error = f"rank {self.rank}: {refused}"
        errors = [error for error in self.all_gather_object(error) if error is not None]
        if errors:
            logger.warning(f"the ranks cannot watch each other ({errors[0]}): one that dies may not be noticed")
        if errors and watch is not None:
            watch.leave()
        return None if errors else watch

    def register_shutdown(self) -> None:
        """When this process ends, tell the other ranks how: for who holds on to the ranks until then."""
        if self._watch is not None:
            Finalize(None, _leave, (self._watch,), exitpriority=1)  # which forked processes call, too

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the process group: together after what all ranks have come to, so that none is cut off by another's end.

        What could be saved is saved, so a scheduler's signal is ignored here; a script with further calls is stopped by it.

        Raises:
            RankLostError: instead of what a collective has raised, where another rank has died.
        """
        with nullcontext() if self.keeps_group else signals.saved():
            self._leave_group(error)

    def _leave_group(self, error: BaseException | None) -> None:
        import torch

        from ulmfit_dist.distributed.process_group import abandon_process_group, forget_control_group, set_accelerate_states

        torch.set_default_dtype(torch.float32)
        is_mine_alone = error is not None and not getattr(error, "is_collective", False)
        if not is_mine_alone:
            self.barrier()
        lost = None
        if self._watch is not None:
            if is_mine_alone and not _explains_itself(error):
                lost = self._watch.loss(patience=2)
            self._watch.leave(f"{type(error).__name__}: {error}" if is_mine_alone else None)
        if self.keeps_group:
            set_accelerate_states(self._earlier_states)  # as a notebook that starts ranks of its own expects
        elif is_mine_alone:
            abandon_process_group()
        elif error is None or isinstance(error, (UserError, ResumableInterrupt)):
            self._control = None
            forget_control_group()
            self.accelerator.free_memory()  # modules of a fit that an error has ended hold the group
            self.accelerator.end_training()
        if lost is not None:
            raise RankLostError(lost) from error


def _explains_itself(error: BaseException | None) -> bool:
    """Return whether an error is the reason for this rank's end. A signal that comes while another error unwinds is not.

    A launcher sends one to all ranks as soon as it has seen that one of them is dead.
    """
    if isinstance(error, ResumableInterrupt):
        return not isinstance(error.__context__, Exception)
    return isinstance(error, UserError)


def _leave(watch: HeartbeatMonitor) -> None:
    error = getattr(sys, "last_value", None)  # what has ended the interpreter
    watch.leave(None if error is None else f"{type(error).__name__}: {error}")
