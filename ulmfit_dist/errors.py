"""What ends a command before its time, its exit codes, and the wording that all messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

USER_ERROR = 2
"""Exit code of every command after a `UserError`, on every rank."""
FAILED = 1
"""Exit code of the other ranks after one has died or failed."""
RESUMABLE = 85
"""Exit code after a signal: what was done is saved, and the same command goes on from there."""


class UserError(Exception):
    """Wrong input. The message is one line: what was found, where, what was expected, what to do."""

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message  # fastai rewrites the arguments of what a callback raises


class RankLostError(Exception):
    """Another rank has died, or failed, and this one cannot go on without it."""


class ResumableInterrupt(BaseException):
    """The run was asked to stop by a signal, and can be resumed. Like KeyboardInterrupt it is not for `except Exception`."""


Error = TypeVar("Error", bound=BaseException)


def mark_collective(error: Error) -> Error:
    """Mark an error that all ranks raise at once, so that none is taken for a rank that failed alone."""
    error.is_collective = True  # type: ignore[attr-defined]
    return error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a half-sentence, or all known words where none is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
