"""How does a window become batches?

1. The rows are sorted, so that each store is read forwards and each chunk once.
2. ``indptr`` of the rows says where their elements lie and how long they are: the batches are laid out.
3. One slab per batch is taken; every row's place in it is an address.
4. The pieces of ``data`` and ``indices`` are read, decoded and scattered to their addresses by a pool of threads.
5. Label codes are gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annbatch.batch import CSR, Batch, Emit
from annbatch.buffers import Slab, SlabPool, aligned
from annbatch.elements import Elements, Task
from annbatch.errors import CorruptStoreError
from annbatch.flat import MAX_GAP
from annbatch.labels import Column
from annbatch.native import Kernel
from annbatch.plan import Ints, Ranges, batch_indptr, coalesce, plan_pieces
from annbatch.samplers import Window
from annbatch.store import Store


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The rows of a window that lie in one store."""

    store: int
    """Number of the store."""
    ranges: Ranges
    """The rows, ascending, as ranges to read."""
    places: Ints
    """(n,) which rows of the window these are."""


class Fetcher:
    """Reads windows; holds the opened stores, the threads and the memory to recycle.

    Parameters
    ----------
    stores
        The stores, in the order in which their rows are numbered.
    columns
        The label columns, over the same stores.
    emit
        What batches shall look like.
    dtype
        Type of the values where ``emit`` leaves it open.
    batch_size
        Rows of a full batch.
    n_threads
        Threads that read, decode and scatter.
    n_windows
        Windows that are in memory at once, the one being used included.
    return_index
        Whether batches carry row numbers.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        columns: Sequence[Column],
        emit: Emit,
        dtype: np.dtype[Any],
        batch_size: int,
        n_threads: int,
        n_windows: int,
        *,
        return_index: bool,
    ) -> None:
        self._stores = stores
        self._columns = columns
        self._emit = emit
        self._dtype = emit.dtype or dtype
        self._batch_size = batch_size
        self._n_windows = n_windows
        self._return_index = return_index
        self._first_rows = np.cumsum([0, *(store.shape[0] for store in stores)], dtype=np.int64)
        self._n_vars = stores[0].shape[1]
        self._slabs = SlabPool()
        self._pool: Executor = ThreadPoolExecutor(n_threads, thread_name_prefix="annbatch")

    def close(self) -> None:
        """Stop the threads; waits for tasks under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def fetch(self, window: Window) -> list[Batch]:
        """Read a window and give its batches."""
        readings = self._readings(window.rows)
        lo, hi = self._element_ranges(readings, len(window.rows))
        layouts = [self._allocate(indptr) for indptr in batch_indptr(hi - lo, window.cuts)]
        self._scatter(readings, lo, hi, layouts)
        self._slabs.max_idle_bytes = max(
            self._slabs.max_idle_bytes, (self._n_windows + 1) * sum(layout.n_bytes for layout in layouts)
        )
        return self._batches(window, readings, layouts)

    def _readings(self, rows: Ints) -> list[Reading]:
        by_row = np.argsort(rows)
        ascending = rows[by_row]
        edges = np.searchsorted(ascending, self._first_rows)
        return [
            Reading(i, coalesce(ascending[a:b] - self._first_rows[i], MAX_GAP), by_row[a:b])
            for i, (a, b) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
            if b > a
        ]

    def _element_ranges(self, readings: list[Reading], n_rows: int) -> tuple[Ints, Ints]:
        """Read and check indptr: (n_rows,) first element and end of every row of the window."""
        lo, hi = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64)
        for reading in readings:
            store = self._stores[reading.store]
            ranges = reading.ranges.extended()
            indptr = store.indptr.read(ranges).astype(np.int64, copy=False)
            nnz = len(store.data)
            if len(indptr) and (indptr[0] < 0 or indptr[-1] > nnz or (np.diff(indptr) < 0).any()):
                raise CorruptStoreError(
                    f"{store.name} X/indptr: must ascend from 0 to {nnz}, the length of data, and does not "
                    f"between rows {ranges.starts[0]} and {ranges.stops[-1] - 1}"
                )
            lo[reading.places] = indptr[ranges.places]
            hi[reading.places] = indptr[ranges.places + 1]
        return lo, hi

    def _allocate(self, indptr: Ints) -> Layout:
        nnz = int(indptr[-1])
        nse = nnz if self._emit.nse is None or self._emit.layout == "dense" else self._emit.nse(nnz)
        index_dtype = self._emit.index_dtype or np.dtype(np.int64 if nse >= 1 << 31 else np.int32)
        if nse > np.iinfo(index_dtype).max:
            raise ValueError(f"index_dtype must hold the number of elements in a batch, {nse}, got {index_dtype}")
        n_rows = self._batch_size if self._emit.pad_rows else len(indptr) - 1
        sizes = (nse * self._dtype.itemsize, nse * index_dtype.itemsize, (n_rows + 1) * index_dtype.itemsize)
        n_bytes = sum(aligned(size) for size in sizes)
        slab = self._slabs.take(n_bytes)
        data, indices = slab.carve(nse, self._dtype), slab.carve(nse, index_dtype)
        data[nnz:] = 0
        indices[nnz:] = 0
        out = slab.carve(n_rows + 1, index_dtype)
        out[: len(indptr)] = indptr
        out[len(indptr) :] = nnz
        return Layout(slab, CSR(data, indices, out, (n_rows, self._n_vars)), indptr, n_bytes)

    def _scatter(self, readings: list[Reading], lo: Ints, hi: Ints, layouts: list[Layout]) -> None:
        """Fill ``data`` and ``indices`` of all batches."""
        tasks: list[Task] = []
        for part, limit in (("data", None), ("indices", self._n_vars)):
            arrays = [getattr(layout.csr, part) for layout in layouts]
            targets = np.concatenate(
                [array.ctypes.data + layout.indptr[:-1] * array.itemsize for array, layout in zip(arrays, layouts, strict=True)]
            )
            dtype = arrays[0].dtype
            for reading in readings:
                elements: Elements = getattr(self._stores[reading.store], part)
                at = reading.places
                pieces = plan_pieces(lo[at], hi[at], targets[at], dtype.itemsize, elements.chunk_elements)
                tasks += elements.tasks(pieces, dtype, limit, layouts)
        run(self._pool, tasks)

    def _batches(self, window: Window, readings: list[Reading], layouts: list[Layout]) -> list[Batch]:
        gathered = [self._gather(column, readings, len(window.rows)) for column in self._columns]
        codes = [column.codes(values) for column, values in zip(self._columns, gathered, strict=True)]
        if self._emit.layout == "dense":
            matrices: list[Any] = [None] * len(layouts)

            def densify(b: int) -> None:
                matrices[b] = self._densify(layouts[b].csr)

            run(self._pool, [partial(densify, b) for b in range(len(layouts))])
        else:
            matrices = [layout.csr for layout in layouts]
        return [
            self._batch(matrices[b], slice(window.cuts[b], window.cuts[b + 1]), window.rows, gathered, codes)
            for b in range(len(layouts))
        ]

    def _batch(
        self, matrix: Any, rows: slice, numbers: Ints, gathered: list[NDArray[Any]], codes: list[NDArray[Any]]
    ) -> Batch:
        """Cut one batch's labels and row numbers out of the window's; copies, so that a kept batch pins nothing else."""
        n_missing = matrix.shape[0] - (rows.stop - rows.start)
        own = [values[rows].copy() for values in gathered]
        index = numbers[rows].copy()
        make_labels = partial(make_frame, self._columns, own, index)
        shown = {}
        for column, values, raw in zip(self._columns, codes, own, strict=True):
            shown[column.name] = padded(raw if column.categories is not None else values[rows].copy(), n_missing)
        return Batch(matrix, shown, padded(index, n_missing) if self._return_index else None, make_labels, n_missing)

    def _gather(self, column: Column, readings: list[Reading], n_rows: int) -> NDArray[Any]:
        parts = [column.gather(reading.store, reading.ranges) for reading in readings]
        masked = any(isinstance(part, np.ma.MaskedArray) for part in parts)
        joined: Any = (np.ma.concatenate if masked else np.concatenate)(parts) if parts else np.empty(0, np.int32)  # type: ignore[operator]
        places = np.concatenate([reading.places for reading in readings]) if readings else np.empty(0, np.int64)
        out = np.ma.empty(n_rows, joined.dtype) if masked else np.empty(n_rows, joined.dtype)
        out[places] = joined
        return out

    def _densify(self, csr: CSR) -> NDArray[Any]:
        n_rows, n_vars = csr.shape
        out = self._slabs.take(aligned(n_rows * n_vars * csr.data.itemsize)).carve(n_rows * n_vars, csr.data.dtype)
        dense = out.reshape(n_rows, n_vars)
        fill_dense(csr.data, csr.indices, csr.indptr, dense)
        return dense


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The memory of one batch."""

    slab: Slab
    """Owns it."""
    csr: CSR
    """What it holds, as handed over."""
    indptr: Ints
    """(n_rows + 1,) int64, without padding rows."""
    n_bytes: int
    """Size of the slab."""


@Kernel
def fill_dense(data: Any, indices: Any, indptr: Any, out: Any) -> None:
    """Write CSR rows into a dense (n_rows, n_vars) array; every index must be below n_vars."""
    for row in range(out.shape[0]):
        out[row, :] = 0
        for k in range(indptr[row], indptr[row + 1]):
            out[row, indices[k]] += data[k]


def run(pool: Executor, tasks: Iterable[Task]) -> None:
    """Run tasks on the pool; returns, or raises the first error, when none of them runs any more."""
    futures = [pool.submit(task) for task in tasks]
    try:
        wait(futures)
    except BaseException:
        # Tasks write into memory that is freed when this frame is left.
        for future in futures:
            future.cancel()
        wait(futures)
        raise
    for future in futures:
        future.result()


def padded(values: NDArray[Any], n_missing: int) -> NDArray[Any]:
    """Append entries for padding rows: -1, or NaN where the values are floating."""
    if not n_missing:
        return values
    return np.append(values, np.full(n_missing, np.nan if values.dtype.kind == "f" else -1, values.dtype))


def make_frame(columns: Sequence[Column], gathered: Sequence[NDArray[Any]], index: Ints) -> pd.DataFrame:
    """Build the DataFrame of a batch's labels; its index are the global row numbers."""
    series = {column.name: column.series(values) for column, values in zip(columns, gathered, strict=True)}
    frame = pd.DataFrame(series, index=pd.RangeIndex(len(index)))
    frame.index = pd.Index(index)
    return frame
