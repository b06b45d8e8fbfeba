"""How are slices of a long one-dimensional array read?

``indptr`` and label columns are as long as the collection has rows; a window needs a few slices of them.
`ArraySlices.begin` takes `Ranges`; what it gives says, when it is called, in which array their rows lie now, and where.

1. Short arrays are read once, and kept: no element is copied.
2. Arrays in local zarr stores and HDF5 files are read directly; if uncompressed, nothing but the slices: `Direct`.
3. Those in object stores are requested, many at once: `Remote`.
4. Others are sliced through zarr, h5py or NumPy: `Sliced`.
5. One whose elements are all the same needs no more memory than one of them: `Constant`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from annbatch.counters import ZARR_NS, waiting
from annbatch.errors import StoreError, naming
from annbatch.plan.window import Found, Ints, Ranges
from annbatch.remote.remote_array import RemoteArray
from annbatch.remote.request_pool import Requests
from annbatch.shards.codecs import Workspace
from annbatch.shards.local_array import ShardedArray
from annbatch.stores.array_opening import ThisProcess, own_array
from annbatch.stores.elements import workspace

KEEP_BYTES = 1 << 22
"""Arrays up to this size are read once, at the first use, and kept in memory."""


class ArraySlices(Protocol):
    """A one-dimensional array that is read by ranges."""

    dtype: np.dtype[Any]

    def __len__(self) -> int: ...

    def begin(self, ranges: Ranges, more: int, requests: Requests) -> Callable[[], Found]:
        """Begin to have every row's element in memory, and ``more`` elements behind it; what is given says where.

        Requests for remote elements are made at once; all else happens when the result is called.
        """


def slices_of(name: str, array: Any, recorded: Mapping[str, int] = MappingProxyType({})) -> ArraySlices:
    """Choose how a NumPy, zarr or HDF5 array is read; ``recorded`` as in `annbatch.stores.array_opening.own_array`."""
    if len(array.shape) != 1:
        raise StoreError(f"{name}: must have one dimension, got {len(array.shape)}")
    own = own_array(array, recorded)
    if isinstance(own, str):
        return Sliced(name, array)
    return Remote(own) if isinstance(own, RemoteArray) else Direct(own)


def _is_short(flat: ArraySlices) -> bool:
    return len(flat) * flat.dtype.itemsize <= KEEP_BYTES


def _whole(flat: ArraySlices) -> tuple[Ints, Ints]:
    """Give the one range that is everything."""
    return np.array([0]), np.array([len(flat)])


class Direct:
    """`ArraySlices` over a local zarr array, or a dataset of an HDF5 file."""

    def __init__(self, array: ShardedArray) -> None:
        self.array = array
        self._kept: NDArray[Any] | None = None
        self.dtype = array.dtype

    def __len__(self) -> int:
        return self.array.shape[0]

    def begin(self, ranges: Ranges, more: int, requests: Requests) -> Callable[[], Found]:
        """Begin to have every row's element in memory; see `ArraySlices.begin`."""
        return partial(self._locate, ranges, more)

    def _locate(self, ranges: Ranges, more: int) -> Found:
        if self._kept is None and _is_short(self):
            self._kept = self.array.read_ranges(workspace(), *_whole(self))
        if self._kept is not None:
            return Found(self._kept, ranges.rows)
        ranges = ranges.widened(more)
        return Found(self.array.read_ranges(workspace(), ranges.starts, ranges.stops), ranges.places)


class Remote:
    """`ArraySlices` over a zarr array in an object store."""

    def __init__(self, array: RemoteArray) -> None:
        self._array = array
        self._kept: NDArray[Any] | None = None
        self._under_way: tuple[Requests, Callable[[Workspace], NDArray[Any]]] | None = None
        self.dtype = array.form.dtype

    def __len__(self) -> int:
        return self._array.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_under_way": None}

    def begin(self, ranges: Ranges, more: int, requests: Requests) -> Callable[[], Found]:
        """Begin to have every row's element in memory; see `ArraySlices.begin`."""
        if self._kept is not None:
            return partial(Found, self._kept, ranges.rows)
        if not _is_short(self):
            ranges = ranges.widened(more)
            some = self._array.request(requests, ranges.starts, ranges.stops)
            return lambda: Found(some(workspace()), ranges.places)
        # The windows of an epoch that come before it is there wait for the same request.
        if self._under_way is None or self._under_way[0] is not requests:
            self._under_way = requests, self._array.request(requests, *_whole(self))
        return partial(self._wait, self._under_way[1], ranges)

    def _wait(self, whole: Callable[[Workspace], NDArray[Any]], ranges: Ranges) -> Found:
        if self._kept is None:
            self._kept = whole(workspace())
            self._under_way = None
        return Found(self._kept, ranges.rows)


class Sliced:
    """`ArraySlices` over anything that has a dtype and gives arrays for slices: NumPy, zarr or HDF5."""

    def __init__(self, name: str, array: Any) -> None:
        self._name = name
        self._array = ThisProcess(array)
        in_memory = isinstance(array, np.ndarray) and array.flags.c_contiguous and array.dtype.isnative
        self._kept: NDArray[Any] | None = array if in_memory else None
        self._size = int(array.shape[0])
        self.dtype: np.dtype[Any] = np.dtype(array.dtype).newbyteorder("=")

    def __len__(self) -> int:
        return self._size

    def begin(self, ranges: Ranges, more: int, requests: Requests) -> Callable[[], Found]:
        """Begin to have every row's element in memory; see `ArraySlices.begin`."""
        return partial(self._locate, ranges, more)

    def _locate(self, ranges: Ranges, more: int) -> Found:
        if self._kept is None and _is_short(self):
            with naming(self._name), waiting(ZARR_NS):
                self._kept = np.ascontiguousarray(self._array.get()[:], self.dtype)
        if self._kept is not None:
            return Found(self._kept, ranges.rows)
        ranges = ranges.widened(more)
        bounds = zip(ranges.starts.tolist(), ranges.stops.tolist(), strict=True)
        with naming(self._name), waiting(ZARR_NS):
            array = self._array.get()
            parts = [array[start:stop] for start, stop in bounds]
        return Found(np.concatenate([np.empty(0, self.dtype), *parts]), ranges.places)


class Constant:
    """A `ArraySlices` of equal elements.

    Parameters
    ----------
    value
        (1,) the element.
    size
        How often it stands there.
    """

    def __init__(self, value: NDArray[Any], size: int) -> None:
        self._value, self._size = value, size
        self.dtype: np.dtype[Any] = value.dtype

    def __len__(self) -> int:
        return self._size

    def begin(self, ranges: Ranges, more: int, requests: Requests) -> Callable[[], Found]:
        """Give every row the same element; see `ArraySlices.begin`."""
        return partial(Found, self._value, np.zeros_like(ranges.rows))
