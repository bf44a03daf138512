"""Ragged arrays: rows of different lengths in one flat numpy array.

A list of arrays would need an object per row; here a million rows are three arrays. Trade-off: a row is set only once.
"""

from __future__ import annotations

import numpy as np


class RaggedArray:
    """Rows of numbers; each row is set once, and many are read at a time.

    Args:
        dtype: dtype of the numbers.
    """

    def __init__(self, dtype: type[np.generic]):
        self._values = GrowableArray(dtype)
        self._starts, self._lengths = GrowableArray(np.int64), GrowableArray(np.int64)

    def set(self, indices: np.ndarray, values: np.ndarray, lengths: np.ndarray) -> None:
        """Set rows.

        Args:
            indices: indices of the rows, int [rows].
            values: values of the rows, concatenated.
            lengths: number of values of each row, int [rows].
        """
        start = len(self._values)
        self._values.put(np.arange(start, start + len(values)), values)
        self._starts.put(indices, start + np.cumsum(lengths) - lengths)
        self._lengths.put(indices, lengths)

    def get(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values of rows, concatenated, and the number of values of each, int64 [rows]."""
        return _gather(self._values, self._starts[indices], self._lengths[indices])


def take_rows(values: np.ndarray, lengths: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of concatenated values, in the format of `RaggedArray.get`."""
    return _gather(values, (np.cumsum(lengths) - lengths)[indices], lengths[indices])


def _gather(values: np.ndarray | GrowableArray, starts: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shifts = starts - (np.cumsum(lengths) - lengths)
    return values[np.repeat(shifts, lengths) + np.arange(lengths.sum())], lengths


class GrowableArray:
    """One-dimensional array that grows when values are set beyond its end; other values are zero."""

    def __init__(self, dtype: type[np.generic]):
        self._array = np.zeros(1024, dtype=dtype)
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        rows: np.ndarray = self._array[indices]
        return rows

    def put(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Set values at indices (int), which may be beyond the end."""
        if not len(indices):
            return
        self._length = max(self._length, int(indices.max()) + 1)
        if self._length > len(self._array):
            grown = np.zeros(2 * self._length, dtype=self._array.dtype)
            grown[: len(self._array)] = self._array
            self._array = grown
        self._array[indices] = values
