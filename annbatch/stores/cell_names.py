"""How are the names of cells, the index of obs, read for some of the rows?

1. `NamesInMemory` are those of a table in memory.
2. `NamesInStore` are those of an array in a store. Of a short one all are read once, and kept; of a longer one only the
   chunks that hold the rows asked for are read, each once.

zarr decodes text: of an object store it does so in a thread that runs beside the requests for the rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray

from annbatch.errors import StoreError, naming
from annbatch.plan.window import Ranges, WindowPlan
from annbatch.remote.request_pool import Requests
from annbatch.stores.array_opening import ThisProcess
from annbatch.stores.stored_frame import as_text

KEEP_ROWS = 1 << 16
"""Arrays of up to so many names are read once, at the first use, and kept in memory."""

Names = NDArray[np.object_]


class CellNames(Protocol):
    """The names of a store's cells."""

    label: str | None
    """What the index is called, if it has a name."""

    def __len__(self) -> int: ...

    def begin(self, ranges: Ranges, requests: Requests) -> Callable[[], Names]:
        """Begin to read the names of rows; what is given waits for them, (n_rows,) str objects."""


class NamesInMemory:
    """`CellNames` of a table in memory."""

    def __init__(self, index: pd.Index[Any]) -> None:
        self._index = index
        self.label = None if index.name is None else str(index.name)

    def __len__(self) -> int:
        return len(self._index)

    def begin(self, ranges: Ranges, requests: Requests) -> Callable[[], Names]:
        """Give the names; see `CellNames.begin`."""
        return lambda: as_text(self._index[ranges.rows])


class NamesInStore:
    """`CellNames` of a zarr array.

    Parameters
    ----------
    name
        What messages call it.
    array
        (n_obs,) text.
    label
        What the index is called, if it has a name.
    """

    def __init__(self, name: str, array: zarr.Array[Any], label: str | None) -> None:
        if array.ndim != 1:
            raise StoreError(f"{name}: must have one dimension, got {array.ndim}")
        self._name = name
        self._array = ThisProcess(array)
        self._is_remote = isinstance(array.store, zarr.storage.ObjectStore)
        self._size = int(array.shape[0])
        self._kept: Names | None = None
        self.label = label

    def __len__(self) -> int:
        return self._size

    def begin(self, ranges: Ranges, requests: Requests) -> Callable[[], Names]:
        """Begin to read the names; see `CellNames.begin`."""
        read = partial(self._read, ranges)
        if self._is_remote and self._kept is None:
            return requests.submit(asyncio.to_thread(read)).result
        return read

    def _read(self, ranges: Ranges) -> Names:
        rows = ranges.rows
        with naming(self._name):
            if self._kept is None and self._size <= KEEP_ROWS:
                self._kept = _objects(self._array.get()[:])
            if self._kept is not None:
                return self._kept[rows]
            array, first, last = self._array.get(), int(rows[0]), int(rows[-1])
            different, places = np.unique(rows, return_inverse=True)
            if last - first + 1 == len(different):
                return _objects(array[first : last + 1])[places]
            # Each chunk is read once, whatever number of rows it holds.
            return _objects(array.oindex[different])[places]


def names_in_order(plan: WindowPlan, waiting: Sequence[Callable[[], Names]]) -> Names:
    """Wait for the names of a window's stores, and give them in the order of its rows: (n_rows,) str objects."""
    names = np.empty(len(plan.order), object)
    for reading, wait in zip(plan.readings, waiting, strict=True):
        names[plan.order[reading.first : reading.stop]] = wait()
    return names


def _objects(values: Any) -> Names:
    """Give text of whatever type as str objects."""
    values = np.asarray(values)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8")
    return values.astype(object) if values.dtype.kind in "UT" else as_text(values.tolist())
