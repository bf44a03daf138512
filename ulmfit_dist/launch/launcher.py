"""`accelerate launch` with the exit code of its ranks.

    python -m ulmfit_dist.launch [OPTION ...] -m ulmfit_dist run CONFIG     # the arguments of `accelerate launch`

Accelerate's launcher exits with 1 whatever the exit codes of its ranks, prints a long report, and kills them thirty seconds
after a SIGTERM. This one wraps it: the exit code is that of the ranks (0, 2 for wrong input, 85 for a run that can be
resumed), it prints nothing that the ranks do not print, and a signal is forwarded without a time limit. Unsupported ways of
training are refused before any rank starts. The trade-off: it depends on internals of Accelerate's and torch's launchers.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from ulmfit_dist.distributed.env import report_error, wants_cpu
from ulmfit_dist.distributed.launch_settings import UNSUPPORTED_TYPES, no_precision, read_config_file, unsupported
from ulmfit_dist.errors import FAILED, RESUMABLE, USER_ERROR, UserError

FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals of schedulers and keyboards. A keyboard's SIGINT reaches ranks in this process group without being forwarded."""

UNSUPPORTED_OPTIONS = {
    "use_deepspeed": "DeepSpeed",
    "use_fsdp": "FSDP",
    "use_megatron_lm": "Megatron-LM",
    "use_parallelism_config": "tensor, context or sequence parallelism",
    "tpu": "a TPU",
}
"""Unsupported options of `accelerate launch`, with the name of what they request."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `accelerate launch` with these arguments; return the exit code of its ranks."""
    import psutil  # before the signal handler that needs it

    def forward(number: int, frame: FrameType | None) -> None:
        ranks = psutil.Process().children()
        if not ranks:
            os._exit(RESUMABLE)  # no rank has started; an exception could be caught by a module that is being imported
        for rank in ranks:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if number != signal.SIGINT or os.getpgid(rank.pid) != os.getpgrp():
                    rank.send_signal(number)

    for number in FORWARDED_SIGNALS:
        signal.signal(number, forward)
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # an option of torchrun that Accelerate lacks
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from ulmfit_dist.launch.node_wait import join_timeout, read_nodes, watch

    _silence_elastic()
    args = launch_command_parser().parse_args(argv)
    try:
        config_file = find_config_file(args)
        refuse_unsupported_options(args, config_file)
        if config_file is None:
            name_defaults(args)
        if (nodes := read_nodes(args, config_file)) is not None:
            watch(nodes, join_timeout(args), FORWARDED_SIGNALS)
        launch_command(args)
    except UserError as error:
        report_error(error)
        return USER_ERROR
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        code = exit_code(list(codes.values()))
        for rank, rank_code in codes.items():
            if code != RESUMABLE and rank_code < 0 and rank_code != -signal.SIGTERM:  # torchrun terminates the others
                print(f"ulmfit-dist: rank {rank} was killed by signal {-rank_code}", file=sys.stderr, flush=True)
        return code
    except subprocess.CalledProcessError as error:  # a single process
        return exit_code([error.returncode])
    return 0


def _silence_elastic() -> None:
    """Silence torchrun's agent, which logs exit codes of ranks, and a traceback if another node leaves first.

    Some of its modules set a level on their own logger when they are imported, so that of the parent is not enough.
    """
    import torch.distributed.elastic.agent.server.api
    import torch.distributed.elastic.rendezvous.dynamic_rendezvous  # noqa: F401

    name = "torch.distributed.elastic"
    for module in [name, *(other for other in logging.root.manager.loggerDict if other.startswith(f"{name}."))]:
        logging.getLogger(module).setLevel(logging.CRITICAL)


def find_config_file(args: argparse.Namespace) -> str | None:
    """Return the config file that Accelerate reads: `--config_file`, else the one written by `accelerate config`, if any."""
    from accelerate.commands.config import default_config_file

    if args.config_file is not None:
        return str(args.config_file)
    return default_config_file if os.path.isfile(default_config_file) and not args.cpu else None


def refuse_unsupported_options(args: argparse.Namespace, config_file: str | None) -> None:
    """Raise UserError for an unsupported way of training, with which Accelerate's launcher or its ranks would fail.

    An option takes precedence over the config file, as in Accelerate.
    """
    for option, name in UNSUPPORTED_OPTIONS.items():
        if getattr(args, option):
            raise unsupported(f"accelerate launch --{option}", name)
    if args.mixed_precision == "fp8":
        raise no_precision("accelerate launch --mixed_precision fp8", "fp8")
    if config_file is None:
        return
    config = read_config_file(config_file)
    distributed_type = str(getattr(config.distributed_type, "value", config.distributed_type))
    if str(config.compute_environment.value) == "AMAZON_SAGEMAKER":
        raise unsupported(f"compute_environment: AMAZON_SAGEMAKER in {config_file}", "Amazon SageMaker's launcher")
    if distributed_type in UNSUPPORTED_TYPES and not args.multi_gpu and not args.cpu:
        raise unsupported(f"distributed_type: {distributed_type} in {config_file}", UNSUPPORTED_TYPES[distributed_type])
    if config.mixed_precision == "fp8" and not args.mixed_precision:
        raise no_precision(f"mixed_precision: fp8 in {config_file}", "fp8")


def name_defaults(args: argparse.Namespace) -> None:
    """Set the options that Accelerate would otherwise choose with a long warning."""
    import psutil
    import torch

    num_gpus = 0 if args.cpu or wants_cpu() else torch.cuda.device_count()  # --cpu starts one process
    args.num_processes = max(1, num_gpus) if args.num_processes is None else args.num_processes
    args.multi_gpu = args.multi_gpu or min(num_gpus, args.num_processes) > 1
    args.num_machines = args.num_machines or 1
    if args.multi_gpu and args.num_machines == 1 and args.main_process_port is None:
        args.main_process_port = 0  # a free port: Accelerate's 29500 may belong to another launch on this machine
    args.mixed_precision = args.mixed_precision or "no"
    args.dynamo_backend = args.dynamo_backend or "no"
    if args.cpu and args.num_cpu_threads_per_process is None and not os.environ.get("OMP_NUM_THREADS"):
        cores = psutil.cpu_count(logical=False) or 1
        args.num_cpu_threads_per_process = max(1, cores * args.num_machines // max(1, args.num_processes))


def exit_code(codes: Sequence[int]) -> int:
    """Return the launcher's exit code, given those of the ranks that failed; negative ones are signals."""
    by_signal = {-signal.SIGTERM, -signal.SIGUSR1}  # before the rank could handle it, so before it trained
    if all(code == RESUMABLE or code in by_signal for code in codes):
        return RESUMABLE
    return next((code for code in codes if code > 0 and code != RESUMABLE), FAILED)
