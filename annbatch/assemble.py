"""How is the memory of the batches of a window laid out, filled and finished?

There is one *part* for each element that batches carry (X, a layer, an element of obsm). ``plan`` lays out the rows of
a window; ``begin`` takes slabs for its batches, and gives a `Filling`:

1. ``work`` reads, decodes and scatters pieces to their addresses, in any order and thread.
2. ``finish`` makes the matrix of a batch when all of it is done. Whole CSR rows, and dense ones, are complete then.
   Where genes are selected, or sparse rows are wanted dense, the work fills scratch memory in the types of the store,
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
from annbatch.elements import Elements, Work, plan_work
from annbatch.errors import CorruptStoreError
from annbatch.layout import RowPlan, plan_dense, plan_sparse
from annbatch.native import Kernel
from annbatch.pieces import cut
from annbatch.plan import Ints, WindowPlan, address
from annbatch.store import DenseMatrix, SparseMatrix


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

    work: Work
    """Fills the memory."""
    finish: Callable[[int], Any]
    """Gives the matrix of a batch when all work is done."""
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
    ) -> None:
        self._matrices = matrices
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

    def plan(self, plan: WindowPlan) -> RowPlan:
        """Read and check ``indptr``, and lay the window's rows out.

        Raises
        ------
        CorruptStoreError
            If it does not ascend from 0 to the length of data.
        """
        matrices = [self._matrices[reading.store] for reading in plan.readings]
        indptrs = [
            matrix.indptr.locate(reading.ranges, more=1)
            for matrix, reading in zip(matrices, plan.readings, strict=True)
        ]
        rows = plan_sparse(plan, indptrs, [matrix.data.size for matrix in matrices])
        if isinstance(rows, int):
            reading, nnz = plan.readings[rows], matrices[rows].data.size
            raise CorruptStoreError(
                f"{self._names[reading.store]}/indptr: must ascend from 0 to {nnz}, the length of data, and does not "
                f"between rows {reading.ranges.starts[0]} and {reading.ranges.stops[-1]}"
            )
        return rows

    def begin(self, plan: WindowPlan, rows: RowPlan) -> Filling:
        """Take memory for the window's batches, and say what fills it."""
        n_batches = len(plan.cuts) - 1
        if self._selection is None and self._emit.layout == "csr":
            sizes = zip(np.diff(plan.cuts).tolist(), rows.n_elements, strict=True)
            # One type for the window: its pieces are scattered together.
            index_dtype = self._index_dtype(max(rows.n_elements))
            filled = [self._allocate(n_rows, nnz, index_dtype) for n_rows, nnz in sizes]
            rows.write_indptrs([matrix.indptr for matrix in filled])
            return Filling(self._work(plan, rows, filled), filled.__getitem__, False, _size(filled))
        scratch = [self._scratch(rows.indptr(b)) for b in range(n_batches)]
        finish = self._densify if self._emit.layout == "dense" else self._select
        dense_bytes = aligned(self._dense_bytes()) * n_batches if self._emit.layout == "dense" else 0
        return Filling(
            self._work(plan, rows, scratch), lambda b: finish(scratch[b]), True, _size(scratch) + dense_bytes
        )

    def _work(self, plan: WindowPlan, rows: RowPlan, matrices: list[CSR]) -> Work:
        stores = [self._matrices[reading.store] for reading in plan.readings]
        arrays: list[list[Elements]] = [[store.data for store in stores], [store.indices for store in stores]]
        targets = [[matrix.data for matrix in matrices], [matrix.indices for matrix in matrices]]
        work = Work()
        for elements, of_batches, limit, pieces in zip(
            arrays, targets, (None, self._n_stored), cut(rows, *_extents(arrays, targets)), strict=True
        ):
            work += plan_work(elements, pieces, of_batches[0].dtype, limit, matrices)
        return work

    def _capacity(self, nnz: int) -> int:
        """Say how many elements a batch of ``nnz`` has room for."""
        return nnz if self._emit.nse is None else self._emit.nse(nnz)

    def _index_dtype(self, nnz: int) -> np.dtype[Any]:
        """Choose the type of column numbers where the largest batch has ``nnz`` elements."""
        nse = self._capacity(nnz)
        index_dtype = self._emit.index_dtype or (_INT64 if nse > _MAX_INT32 else _INT32)
        if nse > np.iinfo(index_dtype).max:
            raise ValueError(f"index_dtype must hold the number of elements in a batch, {nse}, got {index_dtype}")
        return index_dtype

    def _allocate(self, n_rows: int, nnz: int, index_dtype: np.dtype[Any]) -> CSR:
        """Take memory for a matrix as it is handed over, with the padding behind its elements in place."""
        nse = self._capacity(nnz)
        n_rows = self._batch_size if self._emit.pad_rows else n_rows
        data, indices, indptr = self._slabs.arrays((nse, self._dtype), (nse, index_dtype), (n_rows + 1, index_dtype))
        if nse > nnz:
            data[nnz:] = 0
            indices[nnz:] = 0
        return CSR(data, indices, indptr, (n_rows, self._n_columns))

    def _scratch(self, indptr: Ints) -> CSR:
        nnz = int(indptr[-1])
        data, indices = self._slabs.arrays((nnz, self._stored_dtype), (nnz, self._stored_index_dtype))
        return CSR(data, indices, indptr, (len(indptr) - 1, self._n_stored))

    def _select(self, scratch: CSR) -> CSR:
        selection = self._selection
        assert selection is not None
        indptr = select_columns(scratch.data, scratch.indices, scratch.indptr, selection.lookup, selection.in_order)
        nnz = int(indptr[-1])
        matrix = self._allocate(scratch.shape[0], nnz, self._index_dtype(nnz))
        matrix.data[:nnz] = scratch.data[:nnz]
        matrix.indices[:nnz] = scratch.indices[:nnz]
        matrix.indptr[: len(indptr)] = indptr
        matrix.indptr[len(indptr) :] = nnz
        return matrix

    def _dense_bytes(self) -> int:
        return self._batch_size * self._n_columns * self._dtype.itemsize

    def _densify(self, scratch: CSR) -> NDArray[Any]:
        n_rows = self._batch_size if self._emit.pad_rows else scratch.shape[0]
        (out,) = self._slabs.arrays((n_rows * self._n_columns, self._dtype))
        out = out.reshape(n_rows, self._n_columns)
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
    ) -> None:
        self._matrices = matrices
        self._pad_rows = emit.pad_rows
        self._dtype = dtype
        self._batch_size = batch_size
        self._selection = selection
        self._slabs = slabs
        self._width = matrices[0].shape[1]

    def plan(self, plan: WindowPlan) -> RowPlan:
        """Lay the window's rows out."""
        return plan_dense(plan, self._width)

    def begin(self, plan: WindowPlan, rows: RowPlan) -> Filling:
        """Take memory for the window's batches, and say what fills it."""
        arrays = [self._allocate(n_rows, self._width) for n_rows in np.diff(plan.cuts).tolist()]
        values: list[Elements] = [self._matrices[reading.store].values for reading in plan.readings]
        (pieces,) = cut(rows, *_extents([values], [arrays]))
        work = plan_work(values, pieces, self._dtype, None, arrays)
        finish: Callable[[int], Any] = arrays.__getitem__
        if self._selection is not None:
            finish = partial(self._select, arrays)
        return Filling(work, finish, self._selection is not None, sum(array.nbytes for array in arrays))

    def _allocate(self, n_rows: int, width: int) -> NDArray[Any]:
        """Take memory for a dense matrix of the batch, padding rows zeroed."""
        total = self._batch_size if self._pad_rows else n_rows
        (out,) = self._slabs.arrays((total * width, self._dtype))
        out[n_rows * width :] = 0
        return out.reshape(total, width)

    def _select(self, arrays: list[NDArray[Any]], b: int) -> NDArray[Any]:
        assert self._selection is not None
        n_rows, columns = len(arrays[b]), self._selection.columns
        (out,) = self._slabs.arrays((n_rows * len(columns), self._dtype))
        return np.take(arrays[b], columns, axis=1, out=out.reshape(n_rows, len(columns)))


def _extents(
    parts: Sequence[Sequence[Elements]], targets: Sequence[Sequence[NDArray[Any]]]
) -> tuple[NDArray[np.int64], Ints, Ints]:
    """Give what `cut` asks for: sizes of chunks, addresses of the batches' arrays, sizes of their elements."""
    chunk_elements = [[elements.chunk_elements for elements in part] for part in parts]
    bases = [[address(array) for array in arrays] for arrays in targets]
    itemsizes = [arrays[0].itemsize for arrays in targets]
    return (
        np.array(chunk_elements, np.int64).reshape(len(parts), -1), np.array(bases, np.int64), np.array(itemsizes)
    )  # fmt: skip


def _size(matrices: Sequence[CSR]) -> int:
    return sum(matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes for matrix in matrices)


_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)
_MAX_INT32 = 2**31 - 1
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
