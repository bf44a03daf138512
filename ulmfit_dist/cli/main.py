"""Entry point of the command line: dispatch, verbosity, signals, exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext

from ulmfit_dist.cli.commands import COMMANDS
from ulmfit_dist.cli.parser import parse
from ulmfit_dist.distributed import signals
from ulmfit_dist.distributed.env import chosen_device, is_main_process, rank_name, report, report_error
from ulmfit_dist.errors import FAILED, RESUMABLE, USER_ERROR, RankLostError, ResumableInterrupt, UserError
from ulmfit_dist.utils import log
from ulmfit_dist.utils.home import replace_unwritable_home

SECONDS_OF_RANK_0 = 2.0
"""Head start of rank 0, in seconds, to report an error that all ranks raise, before another rank exits and the launcher
terminates the rest."""

logger = log.get_logger(__name__)


def main(argv: Sequence[str] | None = None, ends_process: bool = False) -> int:
    """Run a command and return its exit code: 0, or one of those in `errors.py`.

    Args:
        argv: arguments of the command line; None: those of this process.
        ends_process: whether the process exits with the code next, so that a scheduler's signal must not change it.
    """
    try:
        args = parse(argv)
        with log.console(_level(args), keep=ends_process), chosen_device(getattr(args, "device", "auto")):
            message = replace_unwritable_home()
            if message is not None:
                logger.warning(message)
            with signals.at_once(ends_process) if args.is_resumable else nullcontext():
                COMMANDS[args.command].run(args)
    except UserError as error:
        report_error(error)
        if not is_main_process() and not getattr(error, "is_collective", False):
            time.sleep(SECONDS_OF_RANK_0)
        return USER_ERROR
    except RankLostError as error:
        print(f"ulmfit-dist: error: {error}; {rank_name()} stops as well", file=sys.stderr, flush=True)
        return FAILED
    except ResumableInterrupt as interrupt:
        report(interrupt)
        return RESUMABLE
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the reader has closed the pipe
    except Exception:
        print(f"ulmfit-dist: {rank_name()} failed:", file=sys.stderr, flush=True)
        raise
    return 0


def _level(args: argparse.Namespace) -> int:
    if getattr(args, "verbose", False):
        return logging.DEBUG
    return logging.WARNING if getattr(args, "quiet", False) else logging.INFO
