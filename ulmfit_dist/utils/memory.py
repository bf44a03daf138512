"""Out-of-memory errors: detection, and a message for the user instead of a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ulmfit_dist.errors import UserError

ALLOCATION_FAILED = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")
"""Substrings of out-of-memory messages of errors other than `torch.OutOfMemoryError`."""
FIGURES = (r"[Tt]ried to allocate [\d.]+ [KMGT]?i?B\w*", r"total capacity of [\d.]+ [KMGT]?i?B")
"""Patterns of the relevant figures in torch's message."""
MAX_CHARACTERS = 100
"""Length to which an unknown message is truncated, in characters."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in ALLOCATION_FAILED)


def figures_of(error: BaseException) -> str:
    """Return the figures of an out-of-memory error: `Tried to allocate 2.00 GiB, total capacity of 79.11 GiB`."""
    message = str(error)
    figures = [match.group() for pattern in FIGURES if (match := re.search(pattern, message))]
    return ", ".join(figures) or message.partition("\n")[0][:MAX_CHARACTERS]


@contextmanager
def explain_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Convert an out-of-memory error in a block to a UserError.

    Args:
        what: name of the block's work, such as "predict".
        advice: fix for the user.

    Raises:
        UserError: instead of an out-of-memory error.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{what}: out of memory ({figures_of(error)}): {advice}") from None
