"""Entry point of `python -m ulmfit_dist`, `accelerate launch -m ulmfit_dist` and the command `ulmfit-dist`."""

from functools import partial
from typing import NoReturn

from ulmfit_dist.cli.main import main
from ulmfit_dist.distributed.exit import exit_process


def run() -> NoReturn:
    """Run the command of this process's arguments, and exit with its code."""
    exit_process(partial(main, ends_process=True))


if __name__ == "__main__":
    run()
