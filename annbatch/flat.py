"""How are slices of a long one-dimensional array read?

``indptr`` and label columns are as long as the collection has rows; a window needs a few slices of them.
`Flat.read` takes the ranges of a `Ranges` and gives what lies in them.

1. Short arrays are read once, and kept: `Sliced`.
2. Long ones in local zarr v3 stores are read directly, and nothing but the slices if uncompressed: `Direct`.
3. Other long ones are sliced through zarr.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from annbatch.elements import ThisProcess, direct_array, workspace
from annbatch.plan import Ranges
from annbatch.shards import ShardedArray

KEEP_BYTES = 1 << 22
"""Arrays up to this size are read once, at the first use, and kept in memory."""

MAX_GAP = 1024
"""Elements between two wanted ones that are read and thrown away rather than skipped."""


class Flat(Protocol):
    """A one-dimensional array that is read by ranges."""

    dtype: np.dtype[Any]

    def __len__(self) -> int: ...

    def read(self, ranges: Ranges) -> NDArray[Any]:
        """Give the elements of all ranges, one range after the other: (ranges.n_elements,)."""


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

    def read(self, ranges: Ranges) -> NDArray[Any]:
        """Give the elements of all ranges, one range after the other: (ranges.n_elements,)."""
        return self._array.read_ranges(workspace(), ranges.starts, ranges.stops)


class Sliced:
    """A `Flat` over anything that has a dtype and gives arrays for slices: NumPy or zarr."""

    def __init__(self, array: Any) -> None:
        self._array = ThisProcess(array)
        self._kept: NDArray[Any] | None = None
        self._size = int(array.shape[0])
        self.dtype: np.dtype[Any] = np.dtype(array.dtype)

    def __len__(self) -> int:
        return self._size

    def read(self, ranges: Ranges) -> NDArray[Any]:
        """Give the elements of all ranges, one range after the other: (ranges.n_elements,)."""
        array = self._array.get() if self._kept is None else self._kept
        if self._kept is None and self._size * self.dtype.itemsize <= KEEP_BYTES:
            array = self._kept = np.asarray(array[:])
        out = np.empty(ranges.n_elements, self.dtype)
        at = 0
        for start, stop in zip(ranges.starts.tolist(), ranges.stops.tolist(), strict=True):
            out[at : at + stop - start] = array[start:stop]
            at += stop - start
        return out
