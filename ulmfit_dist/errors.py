"""The one exception for what a user can mend, and the wording that all of its messages share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_CODE = 2
"""Exit code of every command after a `UserError`, on every rank."""


class UserError(Exception):
    """Wrong input. The message is one line: what was found, where, what was expected, what to do."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The nearest known word as a half-sentence, or all known words where none is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
