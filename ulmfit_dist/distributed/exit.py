"""Process exit without interpreter finalization, for the package's own entry points.

A C++ thread that takes the GIL while the interpreter finalizes is unwound inside a destructor, and the process aborts:
"terminate called without an active exception", signal 6 instead of the exit code. Gloo's worker threads do this on a busy
machine, when they release the tensors of a collective late (pytorch issue 190489). So the process joins its threads, runs
the `atexit` functions and flushes files, as the interpreter does before it finalizes, and then calls `os._exit`.

The trade-off: `__del__` of objects that are still alive is not called. `cli.main` returns to its caller instead.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from ulmfit_dist.distributed import signals
from ulmfit_dist.errors import FAILED

KILLED_BY_SIGINT = -int(signal.SIGINT)
"""Exit code of a process killed by SIGINT, in the convention of `subprocess`."""


def exit_process(main: Callable[[], int]) -> NoReturn:
    """Call `main` and exit with the code that it returns, or with Python's exit code for the exception that it raises."""
    code = _run(main)
    signals.ignore_requests()
    for finish in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            finish()
        except BaseException:
            _print_exception()
    code = _flush_standard_streams(code)
    _flush_open_files()
    if code == KILLED_BY_SIGINT:
        signal.raise_signal(signal.SIGINT)  # its handler is SIG_DFL by now
    os._exit(code)


def _run(main: Callable[[], int]) -> int:
    """Return the exit code of `main`; an exception is printed and stored as `sys.last_value`, as in the interpreter."""
    try:
        sys.exit(main())  # W&B replaces sys.exit to record the code
    except SystemExit as stop:
        return _code(stop)
    except BaseException as error:
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
        try:
            sys.excepthook(type(error), error, error.__traceback__)
        except BaseException:
            _print_exception()
        return KILLED_BY_SIGINT if isinstance(error, KeyboardInterrupt) else FAILED


def _code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return (stop.code or 0) & 0xFF
    with suppress(OSError, ValueError):
        print(stop.code, file=sys.stderr)
    return FAILED


def _print_exception() -> None:
    with suppress(OSError, ValueError):  # standard error is closed
        traceback.print_exc()


def _flush_standard_streams(code: int) -> int:
    """Return the exit code: `FAILED` instead of 0 if output could not be written. A closed pipe is not an error."""
    try:
        if sys.stdout is not None and not sys.stdout.closed:
            sys.stdout.flush()
    except BrokenPipeError:
        pass
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            print(f"ulmfit-dist: error: standard output: {error}", file=sys.stderr)
        code = code or FAILED
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.flush()
    return code


def _flush_open_files() -> None:
    """Flush the open files of Python and C, which finalization would otherwise flush."""
    types = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)
    files = [item for item in gc.get_objects() if issubclass(type(item), types)]  # isinstance makes torch's objects warn
    for file in sorted(files, key=lambda file: not isinstance(file, io.TextIOWrapper)):  # text before its buffer
        with suppress(OSError, ValueError):
            if not file.closed:
                file.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
