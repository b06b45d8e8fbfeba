"""How is the memory of the batches of a window laid out, filled and finished?

There is one *part* for each element that batches carry (X, a layer, an element of obsm). ``locate`` and ``plan`` lay
out the rows of a window, ``request`` asks for what is remote; ``begin`` takes slabs for its batches, and gives a
`Filling`:

1. ``work`` reads, decodes and scatters pieces to their addresses, in any order and thread.
2. ``finish`` makes the matrix of a batch when all of it is done. Whole CSR rows, and dense ones, are complete then.
   Where genes are selected, or sparse rows are wanted dense, the work fills scratch memory in the types of the store,
   and ``finish`` makes the matrix from that. Where stores have different genes, it maps their columns first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.batch import CSR, Emit
from annbatch.batches.value_kernels import apply, totals_of
from annbatch.buffers import SlabPool, aligned
from annbatch.errors import CorruptStoreError, InputError
from annbatch.plan.chunk_pieces import cut
from annbatch.plan.column_map import ColumnMap, map_columns, map_dense
from annbatch.plan.column_selection import NO_LOOKUP, Selection, fill_dense, join_pieces, select_columns
from annbatch.plan.row_places import RowPlan, plan_dense, plan_sparse
from annbatch.plan.window import Found, Ints, WindowPlan, address
from annbatch.remote.request_pool import Requests
from annbatch.shards.decode_kernels import Status, native_types
from annbatch.shards.select_scatter import Picked
from annbatch.shards.shard_index import Located
from annbatch.shards.uncached_reads import UncachedReads
from annbatch.stores.anndata_store import DenseMatrix, SparseMatrix
from annbatch.stores.chunk_arrival import ArrivingChunks, are_at_hand, request_chunks
from annbatch.stores.elements import Elements, RemoteElements, Work, plan_work
from annbatch.stores.selected_elements import can_select, plan_selected
from annbatch.transform import LogNormalize, ValueKernel

Indptrs = Sequence[Callable[[], Found]]
"""What waits for the ``indptr`` of each store of a window."""

Check = Callable[[Any], None]
"""Raises if the values of a matrix are not what they should be."""


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


@dataclass(frozen=True, slots=True, eq=False)
class PickedRows:
    """The wanted elements of a window's rows."""

    picked: Picked
    """The elements, in pieces, when the work is done."""
    work: Work
    """Picks them."""
    order: Ints
    """Numbers of the pieces, in the order of the rows."""
    edges: list[Ints]
    """For each part of a batch, (n_rows + 1,): where in ``order`` the pieces of its rows begin, and where they end."""

    @property
    def n_bytes(self) -> int:
        """Memory that they take."""
        return self.picked.values.nbytes + self.picked.columns.nbytes

    def nnz(self, part: int) -> int:
        """Count the wanted elements of a part."""
        return int(self.picked.counts[self._own(part)].sum())

    def join(self, part: int, data: NDArray[Any], indices: NDArray[Any], n_sorted: int) -> Ints:
        """Write the rows of a part, cast as NumPy does, to the front of arrays; gives the indptr."""
        picked, edges = self.picked, self.edges[part]
        types = native_types(picked.values.dtype, data.dtype)
        if types is None:
            # A cast that only NumPy makes as NumPy does.
            stored = np.empty(self.nnz(part), picked.values.dtype)
            found = self.join(part, stored, indices, n_sorted)
            data[: len(stored)] = stored
            return found
        values, target = picked.values.view(types[0]), data.view(types[1])
        places = picked.columns, picked.firsts, picked.counts, self._own(part), edges[1:] - edges[0]
        indptr: Ints = join_pieces(values, *places, target, indices, n_sorted)
        return indptr

    def _own(self, part: int) -> Ints:
        return self.order[self.edges[part][0] : self.edges[part][-1]]


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
        self._columns, selection = _composed(columns, selection, kernel)
        self._emit = emit
        self._dtype = dtype
        self._batch_size = batch_size
        self._n_parts = emit.parts or 1
        if batch_size % self._n_parts:
            raise InputError(f"parts must divide batch_size, {batch_size}, got {self._n_parts}")
        self._selection = selection
        self._slabs = slabs
        self._widths = np.array([matrix.shape[1] for matrix in matrices], np.int64)
        self._n_stored = int(self._widths.max())
        n_joined = self._n_stored if self._columns is None else self._columns.n_columns
        self._n_columns = n_joined if selection is None else len(selection.columns)
        self._drops = selection is not None or (self._columns is not None and self._columns.drops)
        self._stored_dtype = np.result_type(*(matrix.data.dtype for matrix in matrices))
        self._stored_index_dtype = np.result_type(*(matrix.indices.dtype for matrix in matrices))

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
        return replace(rows, most=np.max([self._most(one) for one in all_rows], axis=0))

    def _lay_out(self, plan: WindowPlan, indptrs: Indptrs) -> RowPlan:
        matrices = [self._matrices[reading.store] for reading in plan.readings]
        plan = replace(plan, cuts=self._divided(plan.cuts))
        rows = plan_sparse(plan, [wait() for wait in indptrs], [matrix.data.size for matrix in matrices])
        if isinstance(rows, int):
            reading, nnz = plan.readings[rows], matrices[rows].data.size
            raise CorruptStoreError(
                f"{self._names[reading.store]}/indptr: must ascend from 0 to {nnz}, the length of data, and does not "
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
                    f"{self._names[store]}/indptr: a row must have at most {self._widths[store]} elements, one has "
                    f"{lengths[row]}"
                )
        return rows

    def request(
        self, plan: WindowPlan, rows: RowPlan, requests: Requests, uncached: UncachedReads | None
    ) -> list[ArrivingChunks]:
        """Begin to get chunks into memory that are not there."""
        return _request(self._arrays(plan), rows, requests, uncached)

    def begin(self, plan: WindowPlan, rows: RowPlan, located: Iterator[Located | None]) -> Filling:
        """Take memory for the window's batches, and say what fills it from the chunks that were requested."""
        n_batches, n = len(plan.cuts) - 1, self._n_parts
        most: list[int | None] = [None] * n_batches if rows.most is None else rows.most.tolist()
        # One type for the window: its pieces are scattered together.
        index_dtype = None if rows.most is None else self._index_dtype(int(rows.most.max()))
        if not self._drops and self._emit.layout == "csr":
            n_elements = rows.n_elements
            filled = [
                self._allocate(n_rows, n_elements[b * n : (b + 1) * n], most[b], index_dtype)
                for b, n_rows in enumerate(np.diff(plan.cuts).tolist())
            ]
            targets = [part for matrix in filled for part in self._parts_of(matrix)]
            rows.write_indptrs([part.indptr for part in targets])
            work = self._work(plan, rows, targets, located)
            mapped = targets.__getitem__ if self._columns is None else self._mapped(plan, rows, targets)

            def whole(b: int) -> CSR:
                for part in range(b * n, (b + 1) * n):
                    mapped(part)
                return filled[b]

            finish, is_heavy = _checked(self._check_values, whole, self._columns is not None)
            if self._kernel is not None:
                return Filling(work, lambda b: self._changed(finish(b)), True, _size(filled))
            return Filling(work, finish, is_heavy, _size(filled))
        picked = self._pick(plan, rows, located)
        if picked is not None and self._emit.layout == "csr":
            return self._of_picked(picked, most, index_dtype)
        stored: Callable[[int], CSR]
        if picked is None:
            scratch = [self._scratch(rows.indptr(part)) for part in range(n_batches * n)]
            stored = scratch.__getitem__ if self._columns is None else self._mapped(plan, rows, scratch)
            work, n_bytes = self._work(plan, rows, scratch, located), _size(scratch)
        else:
            work, stored, n_bytes = picked.work, self._in_stored_types(picked), picked.n_bytes
        # Before values are changed, and all of them: totals are those of whole rows.
        is_early = self._emit.layout == "dense" or self._kernel is not None
        stored, _ = _checked(self._check_values if is_early else None, stored, True)
        if self._emit.layout == "dense":
            lookup = NO_LOOKUP if self._selection is None or picked is not None else self._selection.lookup
            dense_bytes = aligned(self._dense_bytes()) * n_batches
            return Filling(work, lambda b: self._densify(stored(b), lookup), True, n_bytes + dense_bytes)

        def select(b: int) -> CSR:
            parts = [stored(part) for part in range(b * n, (b + 1) * n)]
            totals = [totals_of(self._kernel, part, self._dtype) for part in parts]
            kept = [self._wanted(part) for part in parts]
            return self._joined(kept, totals, most[b], index_dtype)

        return Filling(work, *_checked(None if is_early else self._check_values, select, True), n_bytes)

    def _arrays(self, plan: WindowPlan) -> list[list[Elements]]:
        stores = [self._matrices[reading.store] for reading in plan.readings]
        return [[store.data for store in stores], [store.indices for store in stores]]

    def _work(self, plan: WindowPlan, rows: RowPlan, matrices: list[CSR], located: Iterator[Located | None]) -> Work:
        arrays = self._arrays(plan)
        targets = [[matrix.data for matrix in matrices], [matrix.indices for matrix in matrices]]
        work = Work()
        for elements, of_batches, limit, pieces in zip(
            arrays, targets, (None, self._n_stored), cut(rows, *_extents(arrays, targets)), strict=True
        ):
            work += plan_work(elements, pieces, of_batches[0].dtype, limit, matrices, located)
        return work

    def _divided(self, cuts: Ints) -> Ints:
        """Cut batches into parts, (n_batches * n_parts + 1,): the last ones of a short batch have no rows."""
        first = np.arange(self._n_parts) * (self._batch_size // self._n_parts)
        return np.append(np.minimum(cuts[:-1, None] + first, cuts[1:, None]), cuts[-1])

    def _most(self, rows: RowPlan) -> Ints:
        """Say how many elements the largest part of each batch has, or may have where columns are selected."""
        most: Ints = np.array(rows.n_elements, np.int64).reshape(-1, self._n_parts).max(axis=1)
        if self._drops:
            most = np.minimum(most, self._batch_size // self._n_parts * self._n_columns)
        return most

    def _parts_of(self, matrix: CSR) -> list[CSR]:
        if self._emit.parts is None:
            return [matrix]
        shape = (matrix.shape[0] // self._n_parts, matrix.shape[1])
        return [CSR(*arrays, shape) for arrays in zip(matrix.data, matrix.indices, matrix.indptr, strict=True)]

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

    def _room(
        self, elements: Sequence[int], most: int | None, index_dtype: np.dtype[Any] | None
    ) -> tuple[int, np.dtype[Any]]:
        """Say how many elements each part of a batch has room for, and the type of its column numbers."""
        if most is None:
            most = max(elements)
        elif most < max(elements):
            raise ValueError(f"rows must hold each column at most once, got {max(elements)} elements, not {most}")
        return self._capacity(most), index_dtype or self._index_dtype(most)

    def _allocate(
        self, n_rows: int, elements: Sequence[int], most: int | None, index_dtype: np.dtype[Any] | None
    ) -> CSR:
        """Take memory for a matrix as it is handed over, with the padding behind the elements of each part in place."""
        nse, index_dtype = self._room(elements, most, index_dtype)
        n = self._n_parts
        n_rows = self._batch_size if self._emit.pad_rows else n_rows
        wanted = (n * nse, self._dtype), (n * nse, index_dtype), (n_rows + n, index_dtype)
        data, indices, indptr = self._slabs.arrays(*wanted)
        if self._emit.parts is not None:
            data, indices, indptr = (array.reshape(n, -1) for array in (data, indices, indptr))
        matrix = CSR(data, indices, indptr, (n_rows, self._n_columns))
        for part, nnz in zip(self._parts_of(matrix), elements, strict=True):
            if nse > nnz:
                part.data[nnz:] = 0
                part.indices[nnz:] = 0
        return matrix

    def _scratch(self, indptr: Ints) -> CSR:
        nnz = int(indptr[-1])
        data, indices = self._slabs.arrays((nnz, self._stored_dtype), (nnz, self._place_dtype))
        return CSR(data, indices, indptr, (len(indptr) - 1, self._n_stored))

    @property
    def _place_dtype(self) -> np.dtype[Any]:
        """Type of column numbers before they are handed over: also of those of more columns than the stores have."""
        if self._selection is None and self._columns is None:
            return self._stored_index_dtype
        most = self._n_columns if self._columns is None else max(self._n_columns, self._columns.n_columns)
        return np.promote_types(self._stored_index_dtype, np.min_scalar_type(max(0, most - 1)))

    def _pick(self, plan: WindowPlan, rows: RowPlan, located: Iterator[Located | None]) -> PickedRows | None:
        """Say how wanted elements alone are picked out of chunks; None if all have to be decoded into memory first."""
        selection, dtypes = self._selection, (self._stored_dtype, self._place_dtype)
        values, indices = self._arrays(plan)
        # Totals are those of all columns; columns of several kinds are mapped first.
        is_whole = isinstance(self._kernel, LogNormalize) or self._columns is not None
        if selection is None or is_whole or not can_select(values, indices, dtypes):
            return None
        # Pieces go to their places in the window: these say only which row each is of.
        ends = np.cumsum(rows.n_elements)
        chunk_elements = np.array([[one.chunk_elements for one in values]], np.int64)
        (pieces,) = cut(rows, chunk_elements, np.array([ends - rows.n_elements]), np.ones(1, np.int64))
        n_elements, n_pieces = int(pieces.lengths.sum()), len(pieces.lengths)
        wanted = (n_elements, dtypes[0]), (n_elements, dtypes[1]), (n_pieces, _INT64), (n_pieces, _INT64)
        picked = Picked(*self._slabs.arrays(*wanted))
        work = plan_selected((values, indices), pieces, selection, picked, located)
        if work is None:
            return None
        order = np.argsort(pieces.targets)
        stops = [rows.indptr(part) + end - n for part, (end, n) in enumerate(zip(ends, rows.n_elements, strict=True))]
        edges = [np.searchsorted(pieces.targets[order], of_part) for of_part in stops]
        return PickedRows(picked, work, order, edges)

    def _in_stored_types(self, picked: PickedRows) -> Callable[[int], CSR]:
        """Say how the rows of a part come from what was picked."""

        def joined(part: int) -> CSR:
            nnz = picked.nnz(part)
            data, indices = self._slabs.arrays((nnz, self._stored_dtype), (nnz, self._place_dtype))
            indptr = picked.join(part, data, indices, self._n_sorted)
            return CSR(data, indices, indptr, (len(indptr) - 1, self._n_columns))

        return joined

    def _of_picked(self, picked: PickedRows, most: Sequence[int | None], index_dtype: np.dtype[Any] | None) -> Filling:
        """Say how CSR batches come from what was picked: without another copy."""
        n = self._n_parts

        def made(b: int) -> CSR:
            numbers = range(b * n, (b + 1) * n)
            n_rows = len(picked.edges[b * n]) - 1
            matrix = self._allocate(n_rows, [picked.nnz(part) for part in numbers], most[b], index_dtype)
            for target, part in zip(self._parts_of(matrix), numbers, strict=True):
                indptr = picked.join(part, target.data, target.indices, self._n_sorted)
                target.indptr[: len(indptr)] = indptr
                target.indptr[len(indptr) :] = indptr[-1]
            return matrix

        finish, _ = _checked(self._check_values, made, True)
        return Filling(picked.work, lambda b: self._changed(finish(b)), True, picked.n_bytes)

    def _mapped(self, plan: WindowPlan, rows: RowPlan, parts: Sequence[CSR]) -> Callable[[int], CSR]:
        """Give what maps the columns of a part of a batch, in place, when it is filled."""
        columns = self._columns
        assert columns is not None
        lists, bounds = columns.lists_of_rows(plan), rows.cuts

        def mapped(number: int) -> CSR:
            part, indptr = parts[number], rows.indptr(number)
            own = lists[bounds[number] : bounds[number + 1]]
            table = columns.lookup, columns.bounds, columns.ascends, columns.n_columns
            # Values are moved, not looked at: few types of them need a kernel.
            seen = part.data.view(f"u{part.data.itemsize}")
            found, bad = map_columns(seen, part.indices, indptr, own, *table)
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
        """Keep the wanted columns of rows that lie whole in scratch memory."""
        if self._selection is None:
            return part
        indptr = select_columns(part.data, part.indices, part.indptr, self._selection.lookup, self._n_sorted)
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
        """Make the matrix of a batch from its parts, which hold the wanted columns alone."""
        matrix = self._allocate(parts[0].shape[0], [len(part.data) for part in parts], most, index_dtype)
        for target, part, sums in zip(self._parts_of(matrix), parts, totals, strict=True):
            nnz = len(part.data)
            target.data[:nnz] = part.data
            target.indices[:nnz] = part.indices
            target.indptr[: len(part.indptr)] = part.indptr
            target.indptr[len(part.indptr) :] = nnz
            apply(self._kernel, target, sums)
        return matrix

    def _changed(self, matrix: CSR) -> CSR:
        for part in self._parts_of(matrix):
            apply(self._kernel, part)
        return matrix

    def _dense_bytes(self) -> int:
        return self._batch_size * self._n_columns * self._dtype.itemsize

    def _densify(self, scratch: CSR, lookup: NDArray[np.int32]) -> NDArray[Any]:
        n_rows = self._batch_size if self._emit.pad_rows else scratch.shape[0]
        (out,) = self._slabs.arrays((n_rows * self._n_columns, self._dtype))
        out = out.reshape(n_rows, self._n_columns)
        fill_dense(scratch.data, scratch.indices, scratch.indptr, lookup, out)
        apply(self._kernel, out, totals_of(self._kernel, scratch, self._dtype))
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
        check: Check | None = None,
        kernel: ValueKernel | None = None,
        columns: ColumnMap | None = None,
    ) -> None:
        self._matrices = matrices
        self._check_values = check
        self._kernel = kernel
        self._columns, selection = _composed(columns, selection, kernel)
        self._pad_rows = emit.pad_rows
        self._dtype = dtype
        self._batch_size = batch_size
        self._selection = selection
        self._slabs = slabs
        self._widths = [matrix.shape[1] for matrix in matrices]

    def locate(self, plan: WindowPlan, requests: Requests) -> list[Callable[[], Found]]:
        """Give nothing: rows are found without reading anything."""
        return []

    def plan(self, plan: WindowPlan, indptrs: Indptrs, others: Sequence[tuple[WindowPlan, Indptrs]] = ()) -> RowPlan:
        """Lay the window's rows out; what other consumers have is of the same size."""
        return plan_dense(plan, [self._widths[reading.store] for reading in plan.readings])

    def request(
        self, plan: WindowPlan, rows: RowPlan, requests: Requests, uncached: UncachedReads | None
    ) -> list[ArrivingChunks]:
        """Begin to get chunks into memory that are not there."""
        return _request([self._values(plan)], rows, requests, uncached)

    def begin(self, plan: WindowPlan, rows: RowPlan, located: Iterator[Located | None]) -> Filling:
        """Take memory for the window's batches, and say what fills it from the chunks that were requested."""
        counts = np.diff(plan.cuts).tolist()
        if self._columns is None:
            arrays = [self._allocate(n_rows, self._widths[0]) for n_rows in counts]
            joined: Callable[[int], NDArray[Any]] = arrays.__getitem__
        else:
            arrays = [self._slabs.arrays((n, self._dtype))[0] for n in rows.n_elements]
            joined = self._mapped(plan, arrays)
        values = self._values(plan)
        (pieces,) = cut(rows, *_extents([values], [arrays]))
        work = plan_work(values, pieces, self._dtype, None, arrays, located)
        is_made = self._selection is not None or self._columns is not None
        if self._kernel is None:
            finish: Callable[[int], Any] = joined
            if self._selection is not None:
                finish = partial(self._selected, joined)
            finish, is_heavy = _checked(self._check_values, finish, is_made)
        else:
            whole, is_heavy = _checked(self._check_values, joined, True)

            def finish(b: int) -> NDArray[Any]:
                array = whole(b)
                apply(self._kernel, array)
                return array if self._selection is None else self._select(array)

        return Filling(work, finish, is_heavy, sum(array.nbytes for array in arrays))

    def _mapped(self, plan: WindowPlan, arrays: Sequence[NDArray[Any]]) -> Callable[[int], NDArray[Any]]:
        """Give what makes the rows of a batch ones of the joined columns, when they are filled."""
        columns = self._columns
        assert columns is not None
        lists = columns.lists_of_rows(plan)

        def mapped(b: int) -> NDArray[Any]:
            own = lists[plan.cuts[b] : plan.cuts[b + 1]]
            out = self._allocate(len(own), columns.n_columns)
            seen = f"u{self._dtype.itemsize}"
            map_dense(arrays[b].view(seen), own, columns.lookup, columns.bounds, out.view(seen))
            return out

        return mapped

    def _values(self, plan: WindowPlan) -> list[Elements]:
        return [self._matrices[reading.store].values for reading in plan.readings]

    def _allocate(self, n_rows: int, width: int) -> NDArray[Any]:
        """Take memory for a dense matrix of the batch, padding rows zeroed."""
        total = self._batch_size if self._pad_rows else n_rows
        (out,) = self._slabs.arrays((total * width, self._dtype))
        out[n_rows * width :] = 0
        return out.reshape(total, width)

    def _selected(self, joined: Callable[[int], NDArray[Any]], b: int) -> NDArray[Any]:
        return self._select(joined(b))

    def _select(self, array: NDArray[Any]) -> NDArray[Any]:
        assert self._selection is not None
        n_rows, columns = len(array), self._selection.columns
        (out,) = self._slabs.arrays((n_rows * len(columns), self._dtype))
        out = out.reshape(n_rows, len(columns))
        np.take(array, np.maximum(columns, 0), axis=1, out=out)
        out[:, columns < 0] = 0
        return out


def _composed(
    columns: ColumnMap | None, selection: Selection | None, kernel: ValueKernel | None
) -> tuple[ColumnMap | None, Selection | None]:
    """Let one map do both, joining columns and selecting some, unless all joined ones have to be summed up."""
    if columns is None or selection is None or isinstance(kernel, LogNormalize):
        return columns, selection
    return columns.then(selection), None


def _checked(check: Check | None, finish: Callable[[int], Any], is_heavy: bool) -> tuple[Callable[[int], Any], bool]:
    """Let the values of each batch be looked at when it is finished; also say whether that is work for a thread."""
    if check is None:
        return finish, is_heavy

    def checked(b: int) -> Any:
        found = finish(b)
        check(found)
        return found

    return checked, True


def _request(
    parts: Sequence[Sequence[Elements]], rows: RowPlan, requests: Requests, uncached: UncachedReads | None
) -> list[ArrivingChunks]:
    """Begin to get the chunks of the parts' arrays into memory: in the order in which their work is planned."""
    is_remote = any(isinstance(elements, RemoteElements) for part in parts for elements in part)
    if not is_remote and are_at_hand(parts, rows):
        return []
    nowhere = [[np.empty(0, np.uint8)] * (len(rows.cuts) - 1)] * len(parts)
    return [
        arriving
        for elements, pieces in zip(parts, cut(rows, *_extents(parts, nowhere)), strict=True)
        for arriving in request_chunks(elements, pieces, requests, uncached)
    ]


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
