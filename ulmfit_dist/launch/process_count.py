"""Number of processes that the launch scripts start: one that can share the global batches of the config evenly.

    python -m ulmfit_dist.launch.process_count check PROCESSES CONFIG [ARG ...]    # exit code 2 if they cannot
    python -m ulmfit_dist.launch.process_count choose GPUS CONFIG [ARG ...]        # prints how many of the GPUs can

Checked before the launch, so before the texts are tokenized. A number of processes that does not divide the global batch
size is an error, except in the quick start, which leaves GPUs idle. The trade-off: idle GPUs cost time, but another batch
size would train another model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.batches import make_batch_shard
from ulmfit_dist.distributed.env import report_error
from ulmfit_dist.errors import USER_ERROR, UserError
from ulmfit_dist.utils.log import console, get_logger

logger = get_logger(__name__)


def main(argv: Sequence[str]) -> int:
    """Run a command of the launch scripts; return the exit code."""
    command, number, *arguments = argv
    arguments = list(_without_options(arguments))
    try:
        if not arguments:
            raise UserError("no config is given: name one, such as quickstart, or a YAML file")
        config = load_config(arguments[0], arguments[1:])
        with console():
            if command == "check":
                check_processes(config, int(number))
            else:
                print(choose_processes(config, int(number)))
    except UserError as error:
        report_error(error)
        return USER_ERROR
    return 0


def check_processes(config: Config, num_processes: int) -> None:
    """Raise UserError if this many processes cannot share a stage's global batch; it names sizes and counts that fit."""
    for error in _errors(config, num_processes):
        fitting = largest_fitting(config, num_processes)
        raise UserError(f"{error}, or start {fitting} process{'es' if fitting > 1 else ''}") if fitting else error


def choose_processes(config: Config, num_gpus: int) -> int:
    """Return the number of GPUs to use. If some stay idle, log a warning with batch sizes that would use all.

    Raises:
        UserError: not even one process can compute the batches, because of `runtime.canonical_ranks`.
    """
    num_processes = largest_fitting(config, num_gpus)
    if num_gpus and not num_processes:
        check_processes(config, 1)
    if num_processes < num_gpus:
        idle = num_gpus - num_processes
        reasons = "; ".join(map(str, _errors(config, num_gpus)))
        logger.warning(f"using {num_processes} of {num_gpus} GPUs, {idle} {'is' if idle == 1 else 'are'} idle: {reasons}")
    return num_processes


def largest_fitting(config: Config, limit: int) -> int:
    """Return the largest number of processes up to a limit that can share every stage's global batch; 0 for a limit of 0."""
    return next((count for count in range(limit, 0, -1) if not list(_errors(config, count))), 0)


def _without_options(arguments: Sequence[str]) -> Iterator[str]:
    """Yield config and overrides among the arguments of `run`: all but --fresh, --verbose, --device X and the like."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if not argument.startswith("-") and before != "--device":
            yield argument


def _errors(config: Config, num_processes: int) -> Iterator[UserError]:
    share = make_batch_shard(0, num_processes, config.runtime)
    for stage in config.stages:
        try:
            share.check(getattr(config, stage).global_batch_size, f"{stage}.global_batch_size")
        except UserError as error:
            yield error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
