"""How do CSR matrices become batches in host memory?

How a window is filled depends on what the batches hold:

1. Whole CSR rows are decoded straight into the memory of their batch, which is complete when the work is done.
2. Where genes are selected, only the wanted elements are kept, if the chunks allow it
   (`annbatch.batches.picked_rows`).
3. Otherwise rows are decoded into scratch memory in the types of the store. ``finish`` makes the batch from that: it
   maps joined columns, selects genes, transforms values, or makes a dense matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.batch import CSR, Emit
from annbatch.batches.csr_memory import CsrMemory
from annbatch.batches.filling import Check, Filling, Indptrs, checked, composed, extents, request
from annbatch.batches.picked_rows import PickedRows, pick
from annbatch.batches.value_kernels import apply, totals_of
from annbatch.buffers import SlabPool, aligned
from annbatch.errors import CorruptStoreError
from annbatch.plan.chunk_pieces import cut
from annbatch.plan.column_map import ColumnMap, map_columns
from annbatch.plan.column_selection import NO_LOOKUP, Selection, fill_dense, select_columns
from annbatch.plan.row_places import RowPlan, plan_sparse
from annbatch.plan.window import Found, Ints, WindowPlan
from annbatch.remote.request_pool import Requests
from annbatch.shards.decode_kernels import Status
from annbatch.shards.shard_index import Located
from annbatch.shards.uncached_reads import UncachedReads
from annbatch.stores.anndata_store import SparseMatrix
from annbatch.stores.chunk_arrival import ArrivingChunks
from annbatch.stores.elements import Elements, Work, plan_work
from annbatch.stores.selected_elements import can_select
from annbatch.transform import LogNormalize, ValueKernel


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
        check: Check | None = None,
        kernel: ValueKernel | None = None,
        columns: ColumnMap | None = None,
    ) -> None:
        self._matrices = matrices
        self._check_values = check
        self._kernel = kernel
        self._names = names
        self._columns, selection = composed(columns, selection, kernel)
        self._emit = emit
        self._dtype = dtype
        self._batch_size = batch_size
        self._selection = selection
        self._slabs = slabs
        self._widths = np.array([matrix.shape[1] for matrix in matrices], np.int64)
        self._n_stored = int(self._widths.max())
        n_joined = self._n_stored if self._columns is None else self._columns.n_columns
        self._n_columns = n_joined if selection is None else len(selection.columns)
        self._drops = selection is not None or (self._columns is not None and self._columns.drops)
        self._stored_dtype = np.result_type(*(matrix.data.dtype for matrix in matrices))
        self._stored_index_dtype = np.result_type(*(matrix.indices.dtype for matrix in matrices))
        self._memory = CsrMemory(emit, dtype, batch_size, self._n_columns, slabs)

    def locate(self, plan: WindowPlan, requests: Requests) -> list[Callable[[], Found]]:
        """Begin to read the ``indptr`` of the window's stores."""
        return [self._matrices[reading.store].indptr.begin(reading.ranges, 1, requests) for reading in plan.readings]

    def plan(self, plan: WindowPlan, indptrs: Indptrs, others: Sequence[tuple[WindowPlan, Indptrs]] = ()) -> RowPlan:
        """Wait for ``indptr``, check it, lay the window's rows out, and count what other consumers' windows hold.

        Raises
        ------
        CorruptStoreError
            If it does not ascend from 0 to the length of data.
        """
        rows = self._lay_out(plan, indptrs)
        if self._drops and not self._emit.alike:
            return rows
        all_rows = [rows, *(self._lay_out(*other) for other in others)]
        largest = [self._memory.largest_parts(one, drops=self._drops) for one in all_rows]
        return replace(rows, most=np.max(largest, axis=0))

    def _lay_out(self, plan: WindowPlan, indptrs: Indptrs) -> RowPlan:
        matrices = [self._matrices[reading.store] for reading in plan.readings]
        plan = replace(plan, cuts=self._memory.divided(plan.cuts))
        rows = plan_sparse(plan, [wait() for wait in indptrs], [matrix.data.size for matrix in matrices])
        if isinstance(rows, int):
            reading, nnz = plan.readings[rows], matrices[rows].data.size
            raise CorruptStoreError(
                f"{self._names[reading.store]}/indptr: must ascend from 0 to {nnz}, the length of data, but does not "
                f"between rows {reading.ranges.starts[0]} and {reading.ranges.stops[-1]}"
            )
        # Before memory is taken for them: a row has each column at most once.
        lengths = rows.hi - rows.lo
        if lengths.max(initial=0) > self._widths.min():
            stores = [reading.store for reading in plan.readings]
            is_long = lengths > np.repeat(self._widths[stores], np.diff(rows.edges))
            if is_long.any():
                row = int(np.argmax(is_long))
                store = stores[int(np.searchsorted(rows.edges, row, "right")) - 1]
                raise CorruptStoreError(
                    f"{self._names[store]}/indptr: a row must have at most {self._widths[store]} elements, got "
                    f"{lengths[row]}"
                )
        return rows

    def request(
        self, plan: WindowPlan, rows: RowPlan, requests: Requests, uncached: UncachedReads | None
    ) -> list[ArrivingChunks]:
        """Begin to get chunks into memory that have to be fetched first."""
        return request(self._arrays(plan), rows, requests, uncached)

    def begin(self, plan: WindowPlan, rows: RowPlan, located: Iterator[Located | None]) -> Filling:
        """Take memory for the window's batches, and plan the work that fills it from the requested chunks."""
        n_batches = len(plan.cuts) - 1
        most: list[int | None] = [None] * n_batches if rows.most is None else rows.most.tolist()
        # One type for the window: its pieces are scattered together.
        index_dtype = None if rows.most is None else self._memory.index_dtype(int(rows.most.max()))
        if not self._drops and self._emit.layout == "csr":
            return self._whole(plan, rows, located, most, index_dtype)
        picked = self._pick(plan, rows, located)
        if picked is not None and self._emit.layout == "csr":
            return self._of_picked(picked, most, index_dtype)
        return self._of_scratch(plan, rows, located, picked, most, index_dtype)

    def _whole(
        self,
        plan: WindowPlan,
        rows: RowPlan,
        located: Iterator[Located | None],
        most: Sequence[int | None],
        index_dtype: np.dtype[Any] | None,
    ) -> Filling:
        """Decode whole CSR rows into the memory of their batches."""
        n, n_elements = self._memory.n_parts, rows.n_elements
        filled = [
            self._memory.allocate(n_rows, n_elements[b * n : (b + 1) * n], most[b], index_dtype)
            for b, n_rows in enumerate(np.diff(plan.cuts).tolist())
        ]
        targets = [part for matrix in filled for part in self._memory.parts_of(matrix)]
        rows.write_indptrs([part.indptr for part in targets])
        work = self._work(plan, rows, targets, located)
        mapped = targets.__getitem__ if self._columns is None else self._mapped(plan, rows, targets)

        def whole(b: int) -> CSR:
            for part in range(b * n, (b + 1) * n):
                mapped(part)
            return filled[b]

        finish, is_heavy = checked(self._check_values, whole, self._columns is not None)
        if self._kernel is not None:
            return Filling(work, lambda b: self._changed(finish(b)), True, _size(filled))
        return Filling(work, finish, is_heavy, _size(filled))

    def _of_picked(self, picked: PickedRows, most: Sequence[int | None], index_dtype: np.dtype[Any] | None) -> Filling:
        """Make CSR batches from picked elements, without another copy."""
        n = self._memory.n_parts

        def made(b: int) -> CSR:
            numbers = range(b * n, (b + 1) * n)
            n_rows = len(picked.edges[b * n]) - 1
            matrix = self._memory.allocate(n_rows, [picked.nnz(part) for part in numbers], most[b], index_dtype)
            for target, part in zip(self._memory.parts_of(matrix), numbers, strict=True):
                indptr = picked.join(part, target.data, target.indices, self._n_sorted)
                target.indptr[: len(indptr)] = indptr
                target.indptr[len(indptr) :] = indptr[-1]
            return matrix

        finish, _ = checked(self._check_values, made, True)
        return Filling(picked.work, lambda b: self._changed(finish(b)), True, picked.n_bytes)

    def _of_scratch(
        self,
        plan: WindowPlan,
        rows: RowPlan,
        located: Iterator[Located | None],
        picked: PickedRows | None,
        most: Sequence[int | None],
        index_dtype: np.dtype[Any] | None,
    ) -> Filling:
        """Make batches from rows in the types of the store: whole ones in scratch memory, or picked elements."""
        n_batches, n = len(plan.cuts) - 1, self._memory.n_parts
        stored: Callable[[int], CSR]
        if picked is None:
            scratch = [self._scratch(rows.indptr(part)) for part in range(n_batches * n)]
            stored = scratch.__getitem__ if self._columns is None else self._mapped(plan, rows, scratch)
            work, n_bytes = self._work(plan, rows, scratch, located), _size(scratch)
        else:
            work, stored, n_bytes = picked.work, self._in_stored_types(picked), picked.n_bytes
        # Before values are changed, and all of them: totals are those of whole rows.
        is_early = self._emit.layout == "dense" or self._kernel is not None
        stored, _ = checked(self._check_values if is_early else None, stored, True)
        if self._emit.layout == "dense":
            lookup = NO_LOOKUP if self._selection is None or picked is not None else self._selection.lookup
            dense_bytes = aligned(self._batch_size * self._n_columns * self._dtype.itemsize) * n_batches
            return Filling(work, lambda b: self._densify(stored(b), lookup), True, n_bytes + dense_bytes)

        def select(b: int) -> CSR:
            parts = [stored(part) for part in range(b * n, (b + 1) * n)]
            totals = [totals_of(self._kernel, part, self._dtype) for part in parts]
            kept = [self._wanted(part) for part in parts]
            return self._joined(kept, totals, most[b], index_dtype)

        return Filling(work, *checked(None if is_early else self._check_values, select, True), n_bytes)

    def _arrays(self, plan: WindowPlan) -> tuple[list[Elements], list[Elements]]:
        stores = [self._matrices[reading.store] for reading in plan.readings]
        return [store.data for store in stores], [store.indices for store in stores]

    def _work(self, plan: WindowPlan, rows: RowPlan, matrices: list[CSR], located: Iterator[Located | None]) -> Work:
        arrays = self._arrays(plan)
        targets = [[matrix.data for matrix in matrices], [matrix.indices for matrix in matrices]]
        work = Work()
        for elements, of_batches, limit, pieces in zip(
            arrays, targets, (None, self._n_stored), cut(rows, *extents(arrays, targets)), strict=True
        ):
            work += plan_work(elements, pieces, of_batches[0].dtype, limit, matrices, located)
        return work

    def _scratch(self, indptr: Ints) -> CSR:
        nnz = int(indptr[-1])
        data, indices = self._slabs.arrays((nnz, self._stored_dtype), (nnz, self._place_dtype))
        return CSR(data, indices, indptr, (len(indptr) - 1, self._n_stored))

    @property
    def _place_dtype(self) -> np.dtype[Any]:
        """Type of column numbers before they are handed over; also holds the columns of a selection or a join."""
        if self._selection is None and self._columns is None:
            return self._stored_index_dtype
        most = self._n_columns if self._columns is None else max(self._n_columns, self._columns.n_columns)
        return np.promote_types(self._stored_index_dtype, np.min_scalar_type(max(0, most - 1)))

    def _pick(self, plan: WindowPlan, rows: RowPlan, located: Iterator[Located | None]) -> PickedRows | None:
        """Plan to pick only wanted elements out of chunks; None if whole rows have to be decoded first."""
        selection, dtypes = self._selection, (self._stored_dtype, self._place_dtype)
        arrays = self._arrays(plan)
        # Totals are those of all columns; columns of several kinds are mapped first.
        is_whole = isinstance(self._kernel, LogNormalize) or self._columns is not None
        if selection is None or is_whole or not can_select(*arrays, dtypes):
            return None
        return pick(arrays, rows, selection, dtypes, self._slabs, located)

    def _in_stored_types(self, picked: PickedRows) -> Callable[[int], CSR]:
        """Return a function that joins the rows of a part from picked elements."""

        def joined(part: int) -> CSR:
            nnz = picked.nnz(part)
            data, indices = self._slabs.arrays((nnz, self._stored_dtype), (nnz, self._place_dtype))
            indptr = picked.join(part, data, indices, self._n_sorted)
            return CSR(data, indices, indptr, (len(indptr) - 1, self._n_columns))

        return joined

    def _mapped(self, plan: WindowPlan, rows: RowPlan, parts: Sequence[CSR]) -> Callable[[int], CSR]:
        """Return a function that maps the columns of a filled part of a batch, in place."""
        columns = self._columns
        assert columns is not None
        lists, bounds = columns.lists_of_rows(plan), rows.cuts

        def mapped(number: int) -> CSR:
            part, indptr = parts[number], rows.indptr(number)
            own = lists[bounds[number] : bounds[number + 1]]
            table = columns.lookup, columns.bounds, columns.ascends, columns.n_columns
            found, bad = map_columns(_as_words(part.data), part.indices, indptr, own, *table)
            if bad >= 0:
                self._refuse_column(plan, int(bounds[number] + bad))
            nnz = int(found[-1])
            return CSR(part.data[:nnz], part.indices[:nnz], found, (len(own), columns.n_columns))

        return mapped

    def _refuse_column(self, plan: WindowPlan, row: int) -> None:
        """Raise CorruptStoreError: row ``row`` of the window has a column number out of range."""
        read = int(np.flatnonzero(plan.order == row)[0])
        reading = plan.readings[int(np.searchsorted(plan.edges, read, "right")) - 1]
        raise CorruptStoreError(
            f"{self._names[reading.store]}/indices: row {int(reading.ranges.rows[read - reading.first])}: "
            f"{Status.LIMIT.text} of {self._widths[reading.store]}"
        )

    def _wanted(self, part: CSR) -> CSR:
        """Keep the wanted columns of whole rows in scratch memory."""
        if self._selection is None:
            return part
        indptr = select_columns(_as_words(part.data), part.indices, part.indptr, self._selection.lookup, self._n_sorted)
        nnz = int(indptr[-1])
        return CSR(part.data[:nnz], part.indices[:nnz], indptr, (part.shape[0], self._n_columns))

    @property
    def _n_sorted(self) -> int:
        """Number of wanted columns if rows have to be sorted by them, else 0."""
        return 0 if self._selection is None or self._selection.in_order else self._n_columns

    def _joined(
        self,
        parts: Sequence[CSR],
        totals: Sequence[NDArray[np.float64]],
        most: int | None,
        index_dtype: np.dtype[Any] | None,
    ) -> CSR:
        """Make the matrix of a batch from its parts, which hold only the wanted columns."""
        matrix = self._memory.allocate(parts[0].shape[0], [len(part.data) for part in parts], most, index_dtype)
        for target, part, sums in zip(self._memory.parts_of(matrix), parts, totals, strict=True):
            nnz = len(part.data)
            target.data[:nnz] = part.data
            target.indices[:nnz] = part.indices
            target.indptr[: len(part.indptr)] = part.indptr
            target.indptr[len(part.indptr) :] = nnz
            apply(self._kernel, target, sums)
        return matrix

    def _changed(self, matrix: CSR) -> CSR:
        for part in self._memory.parts_of(matrix):
            apply(self._kernel, part)
        return matrix

    def _densify(self, scratch: CSR, lookup: NDArray[np.int32]) -> NDArray[Any]:
        n_rows = self._batch_size if self._emit.pad_rows else scratch.shape[0]
        (out,) = self._slabs.arrays((n_rows * self._n_columns, self._dtype))
        out = out.reshape(n_rows, self._n_columns)
        fill_dense(scratch.data, scratch.indices, scratch.indptr, lookup, out)
        apply(self._kernel, out, totals_of(self._kernel, scratch, self._dtype))
        return out


def _as_words(values: NDArray[Any]) -> NDArray[Any]:
    """View values as unsigned integers for kernels that move them without looking at them, and so need few types."""
    return values.view(f"u{values.itemsize}")


def _size(matrices: Sequence[CSR]) -> int:
    return sum(matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes for matrix in matrices)
