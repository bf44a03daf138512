"""Out of memory: errors that mean it, and the message that a user gets instead of a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ulmfit_dist.errors import UserError

ALLOCATION_FAILED = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")
"""Parts of the messages of other errors than `torch.OutOfMemoryError` that mean the same."""
FIGURES = (r"[Tt]ried to allocate [\d.]+ [KMGT]?i?B\w*", r"total capacity of [\d.]+ [KMGT]?i?B")
"""Patterns of the figures in torch's message that a user needs."""
MOST_CHARACTERS = 100
"""Length of an unknown message, from its beginning."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether a device, or the CPU, had no memory left for an allocation."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in ALLOCATION_FAILED)


def figures_of(error: BaseException) -> str:
    """The figures of an out-of-memory error, such as `Tried to allocate 2.00 GiB, total capacity of 79.11 GiB`."""
    message = str(error)
    found = [match.group() for pattern in FIGURES if (match := re.search(pattern, message))]
    return ", ".join(found) or message.partition("\n")[0][:MOST_CHARACTERS]


@contextmanager
def explain_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error in a block into one line.

    Args:
        what: the work of the block, such as "predict".
        advice: what to set.

    Raises:
        UserError: instead of the error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{what}: out of memory ({figures_of(error)}): {advice}") from None
