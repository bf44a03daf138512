"""Rows of different lengths in one flat array."""

from __future__ import annotations

import numpy as np


class RaggedArray:
    """Rows of numbers, each set once, read many at a time.

    Args:
        dtype: of the numbers.
    """

    def __init__(self, dtype: type[np.generic]):
        self._values = GrowableArray(dtype)
        self._starts, self._lengths = GrowableArray(np.int64), GrowableArray(np.int64)

    def set(self, which: np.ndarray, values: np.ndarray, lengths: np.ndarray) -> None:
        """Set rows.

        Args:
            which: their numbers, int [rows].
            values: what they hold, one after another.
            lengths: how many values each holds, int [rows].
        """
        start = len(self._values)
        self._values.put(np.arange(start, start + len(values)), values)
        self._starts.put(which, start + np.cumsum(lengths) - lengths)
        self._lengths.put(which, lengths)

    def get(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values of rows, one after another, and how many there are of each (int64)."""
        return _gather(self._values, self._starts[which], self._lengths[which])


def take_rows(values: np.ndarray, lengths: np.ndarray, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `RaggedArray.get`, of rows that are given as it returns them."""
    return _gather(values, (np.cumsum(lengths) - lengths)[which], lengths[which])


def _gather(values: np.ndarray | GrowableArray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shifts = starts - (np.cumsum(lengths) - lengths)
    return values[np.repeat(shifts, lengths) + np.arange(lengths.sum())], lengths


class GrowableArray:
    """A one-dimensional array that grows as values are put into it; what was not put is zero."""

    def __init__(self, dtype: type[np.generic]):
        self._array = np.zeros(1024, dtype=dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, which: np.ndarray) -> np.ndarray:
        return self._array[which]

    def put(self, which: np.ndarray, values: np.ndarray) -> None:
        """Put values at places (int), which may lie beyond the end."""
        if not len(which):
            return
        self._length = max(self._length, int(which.max()) + 1)
        if self._length > len(self._array):
            grown = np.zeros(2 * self._length, dtype=self._array.dtype)
            grown[: len(self._array)] = self._array
            self._array = grown
        self._array[which] = values
