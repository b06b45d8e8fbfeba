"""How do dense matrices become batches in host memory?

1. Rows are decoded straight into the memory of their batch, in the type that is handed over.
2. ``finish`` maps joined columns, checks and transforms values, and selects genes. Without any of these, the batch is
   complete when the work is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.batch import Emit
from annbatch.batches.filling import Check, Filling, Indptrs, checked, composed, extents, request
from annbatch.batches.value_kernels import apply
from annbatch.buffers import SlabPool
from annbatch.plan.chunk_pieces import cut
from annbatch.plan.column_map import ColumnMap, map_dense
from annbatch.plan.column_selection import Selection
from annbatch.plan.row_places import RowPlan, plan_dense
from annbatch.plan.window import Found, WindowPlan
from annbatch.remote.request_pool import Requests
from annbatch.shards.shard_index import Located
from annbatch.shards.uncached_reads import UncachedReads
from annbatch.stores.anndata_store import DenseMatrix
from annbatch.stores.chunk_arrival import ArrivingChunks
from annbatch.stores.elements import Elements, plan_work
from annbatch.transform import ValueKernel


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
        self._columns, selection = composed(columns, selection, kernel)
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
        return request([self._values(plan)], rows, requests, uncached)

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
        (pieces,) = cut(rows, *extents([values], [arrays]))
        work = plan_work(values, pieces, self._dtype, None, arrays, located)
        is_made = self._selection is not None or self._columns is not None
        if self._kernel is None:
            finish: Callable[[int], Any] = joined
            if self._selection is not None:
                finish = partial(self._selected, joined)
            finish, is_heavy = checked(self._check_values, finish, is_made)
        else:
            whole, is_heavy = checked(self._check_values, joined, True)

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
