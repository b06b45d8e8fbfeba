"""How are slices of a long one-dimensional array read?

``indptr`` and label columns are as long as the collection has rows; a window needs a few slices of them.
`Flat.locate` takes `Ranges` and says in which array their rows lie now, and where.

1. Short arrays are read once, and kept: `Sliced` gives the array itself, and no element is copied.
2. Long ones in local zarr v3 stores are read directly, and nothing but the slices if uncompressed: `Direct`.
3. Other long ones are sliced through zarr.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from annbatch.elements import ThisProcess, direct_array, workspace
from annbatch.plan import Found, Ranges
from annbatch.shards import ShardedArray

KEEP_BYTES = 1 << 22
"""Arrays up to this size are read once, at the first use, and kept in memory."""


class Flat(Protocol):
    """A one-dimensional array that is read by ranges."""

    dtype: np.dtype[Any]

    def __len__(self) -> int: ...

    def locate(self, ranges: Ranges, more: int = 0) -> Found:
        """Have every row's element in memory, and ``more`` elements behind it; say where."""


def flat_of(array: Any) -> Flat:
    """Choose how a NumPy or zarr array is read."""
    if array.shape[0] * array.dtype.itemsize > KEEP_BYTES:
        direct = direct_array(array)
        if not isinstance(direct, str):
            return Direct(direct)
    return Sliced(array)


class Direct:
    """A `Flat` over a local zarr v3 array."""

    def __init__(self, array: ShardedArray) -> None:
        self._array = array
        self.dtype = array.dtype

    def __len__(self) -> int:
        return self._array.shape[0]

    def locate(self, ranges: Ranges, more: int = 0) -> Found:
        """Have every row's element in memory, and ``more`` elements behind it; say where."""
        ranges = ranges.widened(more)
        return Found(self._array.read_ranges(workspace(), ranges.starts, ranges.stops), ranges.places)


class Sliced:
    """A `Flat` over anything that has a dtype and gives arrays for slices: NumPy or zarr."""

    def __init__(self, array: Any) -> None:
        self._array = ThisProcess(array)
        in_memory = isinstance(array, np.ndarray) and array.flags.c_contiguous and array.dtype.isnative
        self._kept: NDArray[Any] | None = array if in_memory else None
        self._size = int(array.shape[0])
        self.dtype: np.dtype[Any] = np.dtype(array.dtype).newbyteorder("=")

    def __len__(self) -> int:
        return self._size

    def locate(self, ranges: Ranges, more: int = 0) -> Found:
        """Have every row's element in memory, and ``more`` elements behind it; say where."""
        if self._kept is None and self._size * self.dtype.itemsize <= KEEP_BYTES:
            self._kept = np.ascontiguousarray(self._array.get()[:], self.dtype)
        if self._kept is not None:
            return Found(self._kept, ranges.rows)
        ranges, array = ranges.widened(more), self._array.get()
        parts = [array[start:stop] for start, stop in zip(ranges.starts.tolist(), ranges.stops.tolist(), strict=True)]
        return Found(np.concatenate([np.empty(0, self.dtype), *parts]), ranges.places)
