"""How much memory do CSR batches take, and in which types?

1. `CsrMemory.largest_parts` says how many elements a batch may need.
2. `CsrMemory.room` applies the capacity rule of the `Emit`, and chooses the type of the column numbers.
3. `CsrMemory.allocate` takes the three arrays of a batch from the slabs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from annbatch.batch import CSR, Emit
from annbatch.buffers import SlabPool
from annbatch.errors import InputError
from annbatch.plan.row_places import RowPlan
from annbatch.plan.window import Ints

_INT32, _INT64 = np.dtype(np.int32), np.dtype(np.int64)
_MAX_INT32 = 2**31 - 1


class CsrMemory:
    """Takes memory for the CSR batches that an `Emit` asks for.

    Parameters
    ----------
    emit
        What batches shall look like.
    dtype
        Type of their values.
    batch_size
        Rows of a full batch.
    n_columns
        Columns of a batch.
    slabs
        Where memory comes from.

    Raises
    ------
    InputError
        If the batches cannot be cut into as many parts as ``emit`` asks for.
    """

    def __init__(self, emit: Emit, dtype: np.dtype[Any], batch_size: int, n_columns: int, slabs: SlabPool) -> None:
        self.n_parts = emit.parts or 1
        if batch_size % self.n_parts:
            raise InputError(f"parts must divide batch_size, {batch_size}, got {self.n_parts}")
        self._emit = emit
        self._dtype = dtype
        self._batch_size = batch_size
        self._n_columns = n_columns
        self._slabs = slabs

    def divided(self, cuts: Ints) -> Ints:
        """Cut batches into parts: (n_batches * n_parts + 1,). The last parts of a short batch have no rows."""
        first = np.arange(self.n_parts) * (self._batch_size // self.n_parts)
        return np.append(np.minimum(cuts[:-1, None] + first, cuts[1:, None]), cuts[-1])

    def largest_parts(self, rows: RowPlan, *, drops: bool) -> Ints:
        """Return the elements of the largest part of each batch, (n_batches,); a bound if columns are dropped."""
        most: Ints = np.array(rows.n_elements, np.int64).reshape(-1, self.n_parts).max(axis=1)
        if drops:
            most = np.minimum(most, self._batch_size // self.n_parts * self._n_columns)
        return most

    def parts_of(self, matrix: CSR) -> list[CSR]:
        """Return the parts of a batch as matrices on the same memory."""
        if self._emit.parts is None:
            return [matrix]
        shape = (matrix.shape[0] // self.n_parts, matrix.shape[1])
        return [CSR(*arrays, shape) for arrays in zip(matrix.data, matrix.indices, matrix.indptr, strict=True)]

    def index_dtype(self, nnz: int) -> np.dtype[Any]:
        """Choose the type of the column numbers if the largest batch has ``nnz`` elements.

        Raises
        ------
        ValueError
            If the type that the `Emit` asks for cannot count them.
        """
        nse = self._capacity(nnz)
        index_dtype = self._emit.index_dtype or (_INT64 if nse > _MAX_INT32 else _INT32)
        if nse > np.iinfo(index_dtype).max:
            raise ValueError(f"index_dtype must hold the number of elements in a batch, {nse}, got {index_dtype}")
        return index_dtype

    def room(
        self, elements: Sequence[int], most: int | None, index_dtype: np.dtype[Any] | None
    ) -> tuple[int, np.dtype[Any]]:
        """Return how many elements each part of a batch has room for, and the type of its column numbers.

        Parameters
        ----------
        elements
            Elements of each part.
        most
            Elements for which there shall be room; None means those of the largest part.
        index_dtype
            Type of the column numbers; None means one that fits.

        Raises
        ------
        ValueError
            If a part has more elements than ``most``, because a row has a column twice.
        """
        if most is None:
            most = max(elements)
        elif most < max(elements):
            raise ValueError(
                f"rows must hold each column at most once, got {max(elements)} elements instead of at most {most}"
            )
        return self._capacity(most), index_dtype or self.index_dtype(most)

    def allocate(
        self, n_rows: int, elements: Sequence[int], most: int | None, index_dtype: np.dtype[Any] | None
    ) -> CSR:
        """Take memory for a batch; the padding behind the elements of each part is zero, all else is not set.

        ``elements``, ``most`` and ``index_dtype`` are those of `room`.
        """
        nse, index_dtype = self.room(elements, most, index_dtype)
        n = self.n_parts
        n_rows = self._batch_size if self._emit.pad_rows else n_rows
        wanted = (n * nse, self._dtype), (n * nse, index_dtype), (n_rows + n, index_dtype)
        data, indices, indptr = self._slabs.arrays(*wanted)
        if self._emit.parts is not None:
            data, indices, indptr = (array.reshape(n, -1) for array in (data, indices, indptr))
        matrix = CSR(data, indices, indptr, (n_rows, self._n_columns))
        for part, nnz in zip(self.parts_of(matrix), elements, strict=True):
            if nse > nnz:
                part.data[nnz:] = 0
                part.indices[nnz:] = 0
        return matrix

    def _capacity(self, nnz: int) -> int:
        """Return how many elements a batch of ``nnz`` elements has room for."""
        return nnz if self._emit.nse is None else self._emit.nse(nnz)
