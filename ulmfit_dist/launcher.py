"""`accelerate launch`, which ends as its ranks do.

    python -m ulmfit_dist.launcher [OPTION ...] -m ulmfit_dist run CONFIG     # the words of `accelerate launch`

Accelerate's launcher exits with 1 whatever its ranks say, with a report of a screenful, and gives them thirty seconds after
a SIGTERM. Here the exit code is that of the ranks (0, 2 for wrong input, 85 for a run that goes on later), what they print
is all that is printed, and after a signal they have as long as whoever sent it allows.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from ulmfit_dist.errors import FAILED, RESUMABLE

PASSED_ON = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that schedulers send, and a keyboard; that of a keyboard comes by itself to ranks in this process's group."""


def main(words: Sequence[str] | None = None) -> int:
    """Run `accelerate launch` with these words; returns the exit code of its ranks."""
    import psutil  # here, since a signal may come at any time

    def pass_on(number: int, frame: FrameType | None) -> None:
        ranks = psutil.Process().children()
        if not ranks:
            os._exit(RESUMABLE)  # nothing was begun; an exception could be lost in whatever is being imported
        for rank in ranks:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                if number != signal.SIGINT or os.getpgid(rank.pid) != os.getpgrp():
                    rank.send_signal(number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    os.environ["PET_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # torchrun's option, which Accelerate does not have
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would name the ranks' exit codes
    try:
        launch_command(launch_command_parser().parse_args(words))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        code = exit_code(list(codes.values()))
        for rank, rank_code in codes.items():
            if code != RESUMABLE and rank_code < 0 and rank_code != -signal.SIGTERM:  # that is torchrun's, for the others
                print(f"ulmfit-dist: rank {rank} was ended by signal {-rank_code}", file=sys.stderr, flush=True)
        return code
    except subprocess.CalledProcessError as error:  # of a single process
        return exit_code([error.returncode])
    return 0


def exit_code(codes: Sequence[int]) -> int:
    """What the launcher ends with, given those of its ranks that failed, negative ones being signals."""
    by_signal = {-signal.SIGTERM, -signal.SIGUSR1}  # before the rank could handle it: nothing was begun
    if all(code == RESUMABLE or code in by_signal for code in codes):
        return RESUMABLE
    return next((code for code in codes if code > 0 and code != RESUMABLE), FAILED)


if __name__ == "__main__":
    sys.exit(main())
