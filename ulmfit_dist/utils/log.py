"""Logging: the `ulmfit_dist` logger, one console handler, and messages of rank 0 by default.

Results are printed; progress, decisions and problems are logged. As a library the package follows Python's convention: its
logger has a `NullHandler`, and handlers or levels that the user has configured are left as they are. The trade-off: the rank
is read from the environment, not from Accelerate's state as in `accelerate.logging.get_logger`, so that messages can be
logged before torch and Accelerate are imported.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter

ROOT = logging.getLogger("ulmfit_dist")
ROOT.addHandler(logging.NullHandler())


class RankLogger(_Adapter):
    """A logger whose messages appear once: on rank 0, unless `main_process_only=False`, as with Accelerate's logger."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a message.

        Args:
            main_process_only: log on rank 0 only (the default), or on every rank that calls this.
        """
        main_process_only = kwargs.pop("main_process_only", True)
        if self.isEnabledFor(level) and (is_main_process() or not main_process_only):
            kwargs.setdefault("stacklevel", 2)
            self.logger.log(level, msg, *args, **kwargs)


class ConsoleHandler(logging.Handler):
    """DEBUG and INFO on standard output as they are, `warning: ...` and `ulmfit-dist: error: ...` on standard error.

    The streams are looked up for each message, so redirected ones are followed. A closed pipe stops nothing.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record. Raises OSError if standard output cannot be written, such as on a full disk."""
        message = record.getMessage()
        if record.levelno < logging.WARNING:
            print_line(message)
            return
        prefix = "warning" if record.levelno < logging.ERROR else "ulmfit-dist: error"
        with suppress(OSError):
            print(f"{prefix}: {message}", file=sys.stderr, flush=True)


def get_logger(name: str) -> RankLogger:
    """Return the logger of a module: `logger = get_logger(__name__)`; for `python -m`, the logger of the package."""
    return RankLogger(ROOT if name == "__main__" else logging.getLogger(name), {})


def is_main_process() -> bool:
    """Return whether this process is rank 0, before torch is imported."""
    return os.environ.get("RANK", "0") == "0"


def print_line(*values: object) -> None:
    """Print a line on standard output. If its reader has closed the pipe, further output is discarded."""
    try:
        print(*values, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  until the process ends


@contextmanager
def console(level: int = logging.INFO, keep: bool = False) -> Iterator[None]:
    """Log to the console from this level on, in place of other handlers of the package's logger: for command lines.

    Args:
        level: the lowest level that is printed.
        keep: leave the handler in place at the end, for a process that exits next.
    """
    state = list(ROOT.handlers), ROOT.level, ROOT.propagate
    ROOT.handlers, ROOT.propagate = [ConsoleHandler()], False
    ROOT.setLevel(level)
    try:
        yield
    finally:
        if not keep:
            ROOT.handlers, ROOT.propagate = state[0], state[2]
            ROOT.setLevel(state[1])


def console_by_default() -> None:
    """Log INFO and above to the console, unless the user has configured logging: for notebooks and scripts.

    Logging counts as configured if the package's logger has a handler, or if the root logger has one and INFO is enabled.
    A level that is set on the package's logger is kept.
    """
    is_configured = any(not isinstance(handler, logging.NullHandler) for handler in ROOT.handlers)
    if is_configured or (logging.getLogger().handlers and ROOT.propagate and ROOT.isEnabledFor(logging.INFO)):
        return
    ROOT.addHandler(ConsoleHandler())
    ROOT.propagate = False
    if ROOT.level == logging.NOTSET:
        ROOT.setLevel(logging.INFO)


def is_quiet() -> bool:
    """Return whether the console shows warnings and errors only, so that progress is hidden, too."""
    return any(isinstance(handler, ConsoleHandler) for handler in ROOT.handlers) and not ROOT.isEnabledFor(logging.INFO)
