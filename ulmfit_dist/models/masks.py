"""Dropout masks, each computed from its position; on a GPU all masks of a step by one kernel.

A mask consists of rows of a Philox stream: row r of a mask with H features has the ceil(H / 16) counters from
r * ceil(H / 16), and each element takes sixteen random bits. So a row's mask does not depend on the rows that are computed
with it, nor its bits on the device.

On a CPU each mask is computed when it is used. On a GPU that would be a hundred small kernels per step, so `StepMasks`
records which masks were used together, and computes all of them when the first one is requested at the next position. Only
speed depends on the record: a mask that was not computed in advance is computed by a kernel launch for this mask only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ulmfit_dist.cuda.compile import THREADS, CompilationError, compile_source, try_compilers
from ulmfit_dist.rng import philox
from ulmfit_dist.rng.philox import Key, random_words, signed, words_of

LEVELS = 1 << 16
"""Number of distinct probabilities."""
PER_BLOCK = 16
"""Elements per counter of the generator."""

Kernel = Callable[[Tensor, Tensor, int], None]
"""Function of a table of masks, int64 [masks, columns], an int64 buffer for their values, and the number of counters."""


class Mask(NamedTuple):
    """A mask of zeros and 1 / (1 - p), [rows, num_features]; a mask for all rows is row 0 of a stream.

    With sixteen bits per element, p is rounded to a multiple of 2^-16. Kept elements are scaled by the rounded p, so the
    mean is exact.
    """

    key: Key
    rows: range
    num_features: int
    p: float
    dtype: torch.dtype

    @property
    def blocks_per_row(self) -> int:
        """Number of counters per row."""
        return -(-self.num_features // PER_BLOCK)

    @property
    def width(self) -> int:
        """Elements per row, padded to whole counters."""
        return self.blocks_per_row * PER_BLOCK

    @property
    def num_blocks(self) -> int:
        """Number of counters of all rows."""
        return len(self.rows) * self.blocks_per_row

    @property
    def dropped(self) -> int:
        """Number of levels at which an element is dropped."""
        return min(round(self.p * LEVELS), LEVELS - 1)

    @property
    def threshold(self) -> int:
        """Lowest int16 that keeps an element."""
        return self.dropped - LEVELS // 2

    @property
    def scale(self) -> float:
        """Factor of kept elements."""
        return LEVELS / (LEVELS - self.dropped)


def compute_masks(masks: Sequence[Mask], device: torch.device) -> list[Tensor]:
    """Return the masks, each [rows, num_features]; on a GPU one kernel computes all of them."""
    if device.type == "cpu":
        return [_on_cpu(mask) for mask in masks]
    kernel = _kernel(device.type)
    return _from_words(masks, device) if kernel is None else _from_kernel(kernel, masks, device)


def _from_kernel(kernel: Kernel, masks: Sequence[Mask], device: torch.device) -> list[Tensor]:
    num_blocks = sum(mask.num_blocks for mask in masks)
    lengths = [mask.num_blocks * _words_per_block(mask) for mask in masks]
    buffer = torch.empty(sum(lengths), dtype=torch.int64, device=device)
    if num_blocks:
        kernel(_table(masks, device), buffer, num_blocks)
    return [
        part.view(mask.dtype).view(len(mask.rows), mask.width)[:, : mask.num_features]
        for part, mask in zip(buffer.split(lengths), masks, strict=True)
    ]


def _on_cpu(mask: Mask) -> Tensor:
    rows = mask.rows
    span = rows[-1] - rows[0] + 1
    words = random_words(mask.key, rows[0] * mask.blocks_per_row, span * mask.blocks_per_row)
    return _kept(words.view(torch.int16).view(span, -1)[:: rows.step, : mask.num_features], mask)


def _kept(bits: Tensor, mask: Mask) -> Tensor:
    return (bits >= mask.threshold).to(mask.dtype).mul_(mask.scale)


def _table(masks: Sequence[Mask], device: torch.device) -> Tensor:
    """Return the kernel's input, int64 [masks, 10], its columns in the order of `cuda/dropout_masks.cu`."""
    lines, end, offset = [], 0, 0
    for mask in masks:
        end += mask.num_blocks
        kept = torch.zeros(8 // mask.dtype.itemsize, dtype=mask.dtype)
        kept[0] = mask.scale
        counters = (mask.rows.start * mask.blocks_per_row, mask.rows.step * mask.blocks_per_row, mask.blocks_per_row)
        keys = (signed(mask.key[0]), signed(mask.key[1]))
        lines.append((end, *keys, *counters, mask.threshold, int(kept.view(torch.int64)), mask.dtype.itemsize, offset))
        offset += mask.num_blocks * _words_per_block(mask)
    table = torch.tensor(lines, dtype=torch.int64)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def _words_per_block(mask: Mask) -> int:
    return PER_BLOCK * mask.dtype.itemsize // 8


def _from_words(masks: Sequence[Mask], device: torch.device) -> list[Tensor]:
    """As `_from_kernel`, by torch's operations on one call of the generator."""
    table = _table(masks, device)
    ends, keys_2m = table[:, 0].contiguous(), table[:, 1:3].t()
    block_n = torch.arange(sum(mask.num_blocks for mask in masks), device=device)
    mask_n = torch.bucketize(block_n, ends, right=True)
    begin_n = F.pad(ends, (1, 0))[mask_n]
    first_n, stride_n, per_row_n = table[:, 3:6].t()[:, mask_n]
    row_n = (block_n - begin_n) // per_row_n
    words = words_of(first_n + row_n * stride_n + (block_n - begin_n) - row_n * per_row_n, keys_2m[:, mask_n].contiguous())
    parts = words.split([mask.num_blocks for mask in masks])
    return [
        _kept(part.view(torch.int16).view(len(mask.rows), mask.width)[:, : mask.num_features], mask)
        for part, mask in zip(parts, masks, strict=True)
    ]


def compile_masks(device_type: str) -> None:
    """Compile the kernel of a device type before the first mask."""
    if _kernel(device_type) is None:
        philox._kernel(device_type)


@functools.cache
def _kernel(device_type: str) -> Kernel | None:
    """Return the kernel that computes all masks of a step; None to compute them by torch's operations.

    A simulated GPU replaces this function by one whose kernel writes the same bytes as `cuda/dropout_masks.cu`.
    """
    if device_type != "cuda":
        return None
    return try_compilers("dropout masks", ("NVRTC", lambda: _from_nvrtc(torch.device(device_type))))


def _from_nvrtc(device: torch.device) -> Kernel:
    """Compile the kernel, and compare its masks with those of a CPU."""
    launch = compile_source("dropout_masks")

    def kernel(table: Tensor, buffer: Tensor, num_blocks: int) -> None:
        launch(-(-num_blocks // THREADS), [table, buffer, num_blocks])

    trial = [Mask((1, 2), range(1), 9000, 0.5, torch.float32), Mask((3, 4), range(1, 9, 2), 30, 0.1, torch.bfloat16)]
    for mask, computed in zip(trial, _from_kernel(kernel, trial, device), strict=True):
        if not torch.equal(computed.cpu(), _on_cpu(mask)):
            raise CompilationError("its masks differ from those of a CPU")
    return kernel


class Use(NamedTuple):
    """Use of a mask in a step of a network; `per_row`: one mask per row, else one for all rows."""

    site: str
    num_features: int
    p: float
    dtype: torch.dtype
    per_row: bool


Compute = Callable[[Sequence[Use]], list[Tensor]]


class StepMasks:
    """Masks of one position, computed together: those that an earlier step used after the same first mask."""

    def __init__(self) -> None:
        self._at: object = None
        self._used: list[Use] = []
        self._ready: dict[Use, Tensor] = {}
        self._plans: dict[Use, list[Use]] = {}

    def get(self, at: object, use: Use, compute: Compute) -> Tensor:
        """Return a mask at a position.

        Args:
            at: the position; masks of earlier positions are discarded.
            use: the mask to return.
            compute: function that computes masks of this position.
        """
        if at != self._at:
            if self._used:
                self._plans[self._used[0]] = list(dict.fromkeys(self._used))
            self._at, self._used, self._ready = at, [], {}
            wanted = self._plans.get(use, [use])
            self._ready = dict(zip(wanted, compute(wanted), strict=True))
        self._used.append(use)
        return self._ready.pop(use) if use in self._ready else compute([use])[0]
