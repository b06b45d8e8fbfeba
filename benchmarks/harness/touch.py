"""How is every element of a batch touched, exactly and as fast as memory allows?"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.jobs import Matrix


def touch(matrix: Matrix, thorough: bool = True) -> tuple[Any, Any]:
    """Sum a batch's values and the column numbers of its stored elements, exactly and as fast as memory allows.

    On a GPU the sums stay there, and the column numbers of a dense batch are summed only if it shall be ``thorough``;
    None otherwise: finding them costs more than making the batch.
    """
    if not isinstance(matrix.values, np.ndarray):
        return _touch_on_device(matrix, thorough)
    if matrix.columns is None:
        return _touch_dense(matrix.values)
    return _sum_values(matrix.values), _sum_columns(matrix.columns)


def _touch_on_device(matrix: Matrix, thorough: bool) -> tuple[Any, Any]:
    values = matrix.values.sum(dtype=np.float64)
    if matrix.columns is not None:
        return values, matrix.columns.sum(dtype=np.int64)
    if not thorough:
        return values, None
    import cupy

    stored = cupy.count_nonzero(matrix.values, axis=0)
    return values, (stored * cupy.arange(len(stored))).sum()


def _touch_dense(values: np.ndarray[Any, Any]) -> tuple[int, int]:
    stored = np.zeros(values.shape[1], np.int64)
    # Up to 255 rows can be counted in bytes, which is many times faster than counting in words.
    for first in range(0, len(values), 64):
        stored += np.add.reduce((values[first : first + 64] != 0).view(np.uint8), axis=0, dtype=np.uint8)
    return int(values.sum(axis=1).sum(dtype=np.float64)), int(stored @ np.arange(len(stored)))


def _sum_values(values: np.ndarray[Any, Any]) -> int:
    # Counts in blocks of this length sum to less than 2**24, so that float32 sums of them are exact.
    block = 16384
    whole = len(values) // block * block
    total = values[:whole].reshape(-1, block).sum(axis=1).sum(dtype=np.float64)
    return int(total + values[whole:].sum(dtype=np.float64))


def _sum_columns(columns: np.ndarray[Any, Any]) -> int:
    if columns.dtype != np.int32:
        return int(columns.sum(dtype=np.int64))
    # Two int32 in each uint64 lane: NumPy has no fast loop for sums that widen, and these lanes cannot overflow into
    # each other within a block.
    block = 2 * 16384
    whole = len(columns) // block * block
    lanes = columns[:whole].view(np.uint64).reshape(-1, block // 2).sum(axis=1)
    total = int((lanes >> np.uint64(32)).sum()) + int((lanes & np.uint64(0xFFFFFFFF)).sum())
    return total + int(columns[whole:].sum(dtype=np.int64))
