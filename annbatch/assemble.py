"""How is the memory of the batches of a window laid out, filled and finished?

There is one *part* for each element that batches carry (X, a layer, an element of obsm). `SparsePart.begin` and
`DensePart.begin` take slabs, and give a `Filling`:

1. ``tasks`` read, decode and scatter pieces to their addresses; they may run in any order and thread.
2. ``finish`` makes the matrix of a batch when all of them have run. Whole CSR rows, and dense ones, are complete then.
   Where genes are selected, or sparse rows are wanted dense, the tasks fill scratch memory in the types of the store,
   and ``finish`` makes the matrix from that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.batch import CSR, Emit
from annbatch.buffers import SlabPool, aligned
from annbatch.elements import Elements, Task
from annbatch.errors import CorruptStoreError
from annbatch.native import Kernel
from annbatch.plan import Ints, Ranges, batch_indptr, plan_pieces
from annbatch.store import DenseMatrix, SparseMatrix


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The rows of a window that lie in one store."""

    store: int
    """Number of the store."""
    rows: Ints
    """(n,) row numbers in the store, ascending."""
    ranges: Ranges
    """The same rows as ranges to read."""
    places: Ints
    """(n,) which rows of the window these are."""


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Which columns are wanted, in which order."""

    columns: Ints
    """(n_selected,) column numbers in the store, each once."""
    lookup: NDArray[np.int32]
    """(n_columns,) column of the store -> wanted column, -1 where it is not wanted."""
    in_order: bool
    """Whether the wanted columns ascend."""

    @classmethod
    def of(cls, columns: Ints, n_columns: int) -> Selection:
        """Describe wanted columns out of ``n_columns``."""
        lookup = np.full(n_columns, -1, np.int32)
        lookup[columns] = np.arange(len(columns))
        return cls(columns, lookup, bool((np.diff(columns) > 0).all()))


@dataclass(frozen=True, slots=True, eq=False)
class Filling:
    """The matrices of one window, on their way."""

    tasks: list[Task]
    """Fill the memory."""
    finish: Callable[[int], Any]
    """Gives the matrix of a batch when all tasks have run."""
    heavy: bool
    """Whether ``finish`` is work for a thread."""
    n_bytes: int
    """Memory taken for the window."""


class SparsePart:
    """A CSR matrix over all stores."""

    def __init__(
        self,
        matrices: Sequence[SparseMatrix],
        names: Sequence[str],
        emit: Emit,
        dtype: np.dtype[Any],
        batch_size: int,
        selection: Selection | None,
        slabs: SlabPool,
        n_workers: int,
    ) -> None:
        self._matrices = matrices
        self._n_workers = n_workers
        self._names = names
        self._emit = emit
        self._dtype = dtype
        self._batch_size = batch_size
        self._selection = selection
        self._slabs = slabs
        self._n_stored = matrices[0].shape[1]
        self._n_columns = self._n_stored if selection is None else len(selection.columns)
        self._stored_dtype = np.result_type(*(matrix.data.dtype for matrix in matrices))
        self._stored_index_dtype = np.result_type(*(matrix.indices.dtype for matrix in matrices))

    def begin(self, readings: Sequence[Reading], cuts: Ints) -> Filling:
        """Lay the window out."""
        lo, hi = self._element_ranges(readings, int(cuts[-1]))
        indptrs = batch_indptr(hi - lo, cuts)
        if self._selection is None and self._emit.layout == "csr":
            filled = [self._allocate(indptr) for indptr in indptrs]
            return Filling(self._tasks(readings, lo, hi, filled, indptrs), filled.__getitem__, False, _size(filled))
        scratch = [self._scratch(indptr) for indptr in indptrs]
        finish = self._densify if self._emit.layout == "dense" else self._select
        return Filling(
            self._tasks(readings, lo, hi, scratch, indptrs),
            lambda b: finish(scratch[b]),
            True,
            _size(scratch) + (aligned(self._dense_bytes()) * len(indptrs) if self._emit.layout == "dense" else 0),
        )

    def _element_ranges(self, readings: Sequence[Reading], n_rows: int) -> tuple[Ints, Ints]:
        """Read and check indptr: (n_rows,) first element and end of every row of the window."""
        lo, hi = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64)
        for reading in readings:
            matrix = self._matrices[reading.store]
            ranges = reading.ranges.extended()
            indptr = matrix.indptr.read(ranges).astype(np.int64, copy=False)
            nnz = matrix.data.size
            if indptr[0] < 0 or indptr[-1] > nnz or (np.diff(indptr) < 0).any():
                raise CorruptStoreError(
                    f"{self._names[reading.store]}/indptr: must ascend from 0 to {nnz}, the length of data, and does "
                    f"not between rows {ranges.starts[0]} and {ranges.stops[-1] - 1}"
                )
            lo[reading.places] = indptr[ranges.places]
            hi[reading.places] = indptr[ranges.places + 1]
        return lo, hi

    def _tasks(
        self, readings: Sequence[Reading], lo: Ints, hi: Ints, matrices: list[CSR], indptrs: list[Ints]
    ) -> list[Task]:
        tasks: list[Task] = []
        for part in ("data", "indices"):
            arrays = [getattr(matrix, part) for matrix in matrices]
            itemsize = arrays[0].itemsize
            targets = np.concatenate(
                [array.ctypes.data + indptr[:-1] * itemsize for array, indptr in zip(arrays, indptrs, strict=True)]
            )
            for reading in readings:
                elements: Elements = getattr(self._matrices[reading.store], part)
                at = reading.places
                pieces = plan_pieces(lo[at], hi[at], targets[at], itemsize, elements.chunk_elements)
                limit = self._n_stored if part == "indices" else None
                tasks += elements.tasks(pieces, arrays[0].dtype, limit, matrices, self._n_workers)
        return tasks

    def _allocate(self, indptr: Ints) -> CSR:
        """Take memory for a matrix as it is handed over, with padding and indptr in place."""
        nnz = int(indptr[-1])
        nse = nnz if self._emit.nse is None else self._emit.nse(nnz)
        index_dtype = self._emit.index_dtype or np.dtype(np.int64 if nse >= 1 << 31 else np.int32)
        if nse > np.iinfo(index_dtype).max:
            raise ValueError(f"index_dtype must hold the number of elements in a batch, {nse}, got {index_dtype}")
        n_rows = self._batch_size if self._emit.pad_rows else len(indptr) - 1
        sizes = (nse * self._dtype.itemsize, nse * index_dtype.itemsize, (n_rows + 1) * index_dtype.itemsize)
        slab = self._slabs.take(sum(aligned(size) for size in sizes))
        data, indices = slab.carve(nse, self._dtype), slab.carve(nse, index_dtype)
        data[nnz:] = 0
        indices[nnz:] = 0
        out = slab.carve(n_rows + 1, index_dtype)
        out[: len(indptr)] = indptr
        out[len(indptr) :] = nnz
        return CSR(data, indices, out, (n_rows, self._n_columns))

    def _scratch(self, indptr: Ints) -> CSR:
        nnz = int(indptr[-1])
        slab = self._slabs.take(
            aligned(nnz * self._stored_dtype.itemsize) + aligned(nnz * self._stored_index_dtype.itemsize)
        )
        data, indices = slab.carve(nnz, self._stored_dtype), slab.carve(nnz, self._stored_index_dtype)
        return CSR(data, indices, indptr, (len(indptr) - 1, self._n_stored))

    def _select(self, scratch: CSR) -> CSR:
        selection = self._selection
        assert selection is not None
        indptr = select_columns(scratch.data, scratch.indices, scratch.indptr, selection.lookup, selection.in_order)
        matrix = self._allocate(indptr)
        matrix.data[: indptr[-1]] = scratch.data[: indptr[-1]]
        matrix.indices[: indptr[-1]] = scratch.indices[: indptr[-1]]
        return matrix

    def _dense_bytes(self) -> int:
        return self._batch_size * self._n_columns * self._dtype.itemsize

    def _densify(self, scratch: CSR) -> NDArray[Any]:
        n_rows = self._batch_size if self._emit.pad_rows else scratch.shape[0]
        slab = self._slabs.take(self._dense_bytes())
        out = slab.carve(n_rows * self._n_columns, self._dtype).reshape(n_rows, self._n_columns)
        lookup = _NO_LOOKUP if self._selection is None else self._selection.lookup
        fill_dense(scratch.data, scratch.indices, scratch.indptr, lookup, out)
        return out


class DensePart:
    """A dense matrix over all stores."""

    def __init__(
        self,
        matrices: Sequence[DenseMatrix],
        emit: Emit,
        dtype: np.dtype[Any],
        batch_size: int,
        selection: Selection | None,
        slabs: SlabPool,
        n_workers: int,
    ) -> None:
        self._matrices = matrices
        self._n_workers = n_workers
        self._pad_rows = emit.pad_rows
        self._dtype = dtype
        self._batch_size = batch_size
        self._selection = selection
        self._slabs = slabs
        self._width = matrices[0].shape[1]

    def begin(self, readings: Sequence[Reading], cuts: Ints) -> Filling:
        """Lay the window out."""
        width, itemsize = self._width, self._dtype.itemsize
        arrays = [self._allocate(int(n_rows), width) for n_rows in np.diff(cuts)]
        targets = np.concatenate(
            [
                array.ctypes.data + np.arange(n_rows, dtype=np.int64) * (width * itemsize)
                for array, n_rows in zip(arrays, np.diff(cuts), strict=True)
            ]
        )
        tasks: list[Task] = []
        for reading in readings:
            values = self._matrices[reading.store].values
            lo = reading.rows * width
            pieces = plan_pieces(lo, lo + width, targets[reading.places], itemsize, values.chunk_elements)
            tasks += values.tasks(pieces, self._dtype, None, arrays, self._n_workers)
        finish: Callable[[int], Any] = arrays.__getitem__
        if self._selection is not None:
            finish = partial(self._select, arrays)
        return Filling(tasks, finish, self._selection is not None, sum(array.nbytes for array in arrays))

    def _allocate(self, n_rows: int, width: int) -> NDArray[Any]:
        """Take memory for a dense matrix of the batch, padding rows zeroed."""
        total = self._batch_size if self._pad_rows else n_rows
        slab = self._slabs.take(total * width * self._dtype.itemsize)
        out = slab.carve(total * width, self._dtype).reshape(total, width)
        out[n_rows:] = 0
        return out

    def _select(self, arrays: list[NDArray[Any]], b: int) -> NDArray[Any]:
        assert self._selection is not None
        n_rows, columns = len(arrays[b]), self._selection.columns
        slab = self._slabs.take(n_rows * len(columns) * self._dtype.itemsize)
        out = slab.carve(n_rows * len(columns), self._dtype).reshape(n_rows, len(columns))
        return np.take(arrays[b], columns, axis=1, out=out)


def _size(matrices: Sequence[CSR]) -> int:
    return sum(matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes for matrix in matrices)


_NO_LOOKUP = np.empty(0, np.int32)


@Kernel
def select_columns(data: Any, indices: Any, indptr: Any, lookup: Any, in_order: Any) -> Any:
    """Keep wanted columns, in place: rows move to the front of ``data`` and ``indices``; gives the new indptr."""
    out = np.empty(indptr.size, np.int64)
    out[0] = 0
    k = 0
    for row in range(indptr.size - 1):
        begin = k
        for i in range(indptr[row], indptr[row + 1]):
            column = lookup[indices[i]]
            if column >= 0:
                data[k] = data[i]
                indices[k] = column
                k += 1
        if not in_order and k > begin:
            order = np.argsort(indices[begin:k])
            indices[begin:k] = indices[begin:k][order]
            data[begin:k] = data[begin:k][order]
        out[row + 1] = k
    return out


@Kernel
def fill_dense(data: Any, indices: Any, indptr: Any, lookup: Any, out: Any) -> None:
    """Write CSR rows into a dense (n_rows, n_columns) array; an empty ``lookup`` means all columns as they are."""
    for row in range(out.shape[0]):
        out[row, :] = 0
        if row >= indptr.size - 1:
            continue
        if lookup.size:
            for i in range(indptr[row], indptr[row + 1]):
                column = lookup[indices[i]]
                if column >= 0:
                    out[row, column] += data[i]
        else:
            for i in range(indptr[row], indptr[row + 1]):
                out[row, indices[i]] += data[i]
