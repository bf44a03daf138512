"""Number of processes that the launch scripts start: one that can share the global batches of the recipe evenly.

    python -m ulmfit_dist.launch.process_count check PROCESSES CONFIG [WORD ...]    # exit code 2 if they cannot
    python -m ulmfit_dist.launch.process_count choose GPUS CONFIG [WORD ...]        # prints how many of so many GPUs can

Before anything is launched, so that a recipe is not tokenized first. A number of processes that does not divide the global
batch size is an error everywhere but in the quick start: another batch size would train another model, while idle GPUs only
take time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.batches import make_batch_shard
from ulmfit_dist.distributed.env import report_error
from ulmfit_dist.errors import USER_ERROR, UserError
from ulmfit_dist.utils.log import get_logger

logger = get_logger(__name__)


def main(argv: Sequence[str]) -> int:
    """Run a command of the scripts; returns the exit code."""
    command, number, *words = argv
    words = [word for word in words if not word.startswith("-")]  # without --fresh and --verbose
    try:
        if not words:
            raise UserError("no config is given: name one, such as configs/quickstart.yaml")
        config = load_config(words[0], words[1:])
        if command == "check":
            check_processes(config, int(number))
        else:
            print(choose_processes(config, int(number)))
    except UserError as error:
        report_error(error)
        return USER_ERROR
    return 0


def check_processes(config: Config, num_processes: int) -> None:
    """Raise UserError where a stage's global batch cannot be shared by so many, naming sizes and numbers that fit."""
    for error in _refusals(config, num_processes):
        fitting = largest_fitting(config, num_processes)
        raise UserError(f"{error}, or start {fitting} process{'es' if fitting > 1 else ''}") if fitting else error


def choose_processes(config: Config, num_gpus: int) -> int:
    """Return the number of GPUs to use; if some stay idle, one line names it, and batch sizes that would use all.

    Raises:
        UserError: not even one process can compute the batches, for the virtual ranks of the config.
    """
    num_processes = largest_fitting(config, num_gpus)
    if num_gpus and not num_processes:
        check_processes(config, 1)
    if num_processes < num_gpus:
        idle = num_gpus - num_processes
        reasons = "; ".join(map(str, _refusals(config, num_gpus)))
        logger.warning(f"using {num_processes} of {num_gpus} GPUs, {idle} {'is' if idle == 1 else 'are'} idle: {reasons}")
    return num_processes


def largest_fitting(config: Config, limit: int) -> int:
    """The largest number of processes, up to a limit, that can share every stage's global batch; 0 for a limit of 0."""
    return next((count for count in range(limit, 0, -1) if not list(_refusals(config, count))), 0)


def _refusals(config: Config, num_processes: int) -> Iterator[UserError]:
    share = make_batch_shard(0, num_processes, config.runtime)
    for stage in config.stages:
        try:
            share.check(getattr(config, stage).global_batch_size, f"{stage}.global_batch_size")
        except UserError as error:
            yield error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
