"""Exceptions, exit codes and message helpers.

Errors that the user can fix are one class, `UserError`; everything else ends in a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

USER_ERROR = 2
"""Exit code of every command after a `UserError`, on every rank."""
FAILED = 1
"""Exit code of the remaining ranks after one has died or failed."""
RESUMABLE = 85
"""Exit code after a signal: progress is saved, and the same command resumes from it."""


class UserError(Exception):
    """Invalid input. The message is one line: the thing, its value, the expected value, the fix."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message  # fastai rewrites the arguments of exceptions raised in callbacks


class RankLostError(Exception):
    """Another rank has died or failed, and this rank cannot continue without it."""


class ResumableInterrupt(BaseException):
    """A signal stopped the run, which can be resumed. Like KeyboardInterrupt, `except Exception` does not catch it."""


Error = TypeVar("Error", bound=BaseException)


def mark_collective(error: Error) -> Error:
    """Mark an error that all ranks raise together, so that it does not count as the failure of a single rank."""
    error.is_collective = True  # type: ignore[attr-defined]
    return error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the closest known word as a clause, or all known words if none is close."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
