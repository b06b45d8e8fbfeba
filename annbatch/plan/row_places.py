"""Where do the elements of a window's rows lie in the stores, and where in the batches?

Pure, compiled, without the GIL.

1. `plan_sparse` lays out the rows of every batch from the stores' ``indptr``, which it checks: nothing that follows
   could do harm, whatever a store says. `plan_dense` lays them out from the rows' widths.
2. A `RowPlan` also is the ``indptr`` of every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.native import Kernel, inline, pointer
from annbatch.plan.window import Found, Ints, WindowPlan, address

_INT64, _INT32 = np.empty(0, np.int64), np.empty(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class RowPlan:
    """Where the elements of a window's rows lie in the stores, and where they go; rows in the order of reading."""

    lo: Ints
    """(n_rows,) a row's first element in its store, ascending within a store."""
    hi: Ints
    """(n_rows,) end of its elements."""
    batches: Ints
    """(n_rows,) the batch that it goes to."""
    offsets: Ints
    """(n_rows,) which element of that batch its first one becomes."""
    edges: Ints
    """(n_readings + 1,) where each reading begins."""
    cuts: Ints
    """(n_batches + 1,) batch b holds rows [cuts[b], cuts[b + 1]) of the window."""
    starts: Ints
    """(n_rows + n_batches,) the indptr of every batch, one behind the other."""
    most: Ints | None = None
    """(n_batches,) elements to make room for in each part of a batch; None where that shows when they are decoded."""

    def indptr(self, b: int) -> Ints:
        """Give the indptr of a batch: its number of rows and one more, int64, from 0."""
        return self.starts[self.cuts[b] + b : self.cuts[b + 1] + b + 1]

    @property
    def n_elements(self) -> list[int]:
        """(n_batches,) the elements of each batch."""
        ends: list[int] = self.starts[self.cuts[1:] + np.arange(len(self.cuts) - 1)].tolist()
        return ends

    def write_indptrs(self, targets: Sequence[NDArray[Any]]) -> None:
        """Write the indptr of each batch, int32 or int64; where there is more room, its last element is repeated."""
        table = [(address(target), len(target), target.itemsize) for target in targets]
        _write_indptrs(self.starts, self.cuts, np.array(table, np.int64).reshape(-1, 3))


def plan_sparse(plan: WindowPlan, indptrs: Sequence[Found], nnz: Sequence[int]) -> RowPlan | int:
    """Lay out the rows of every batch.

    Parameters
    ----------
    plan
        The window.
    indptrs
        For each reading, int32 or int64 that hold ``indptr`` at every row and behind it.
    nnz
        For each reading, the number of stored elements.

    Returns
    -------
    RowPlan or int
        Or the number of the first reading whose rows do not ascend within its elements.
    """
    wide = [found.values if found.values.dtype in (_INT32.dtype, _INT64.dtype) else found.values.astype(np.int64)
            for found in indptrs]  # fmt: skip
    table = np.array(
        [
            (address(values), len(values), values.itemsize, address(found.places), elements)
            for values, found, elements in zip(wide, indptrs, nnz, strict=True)
        ],
        np.int64,
    ).reshape(-1, 5)
    edges = plan.edges
    wrong, *arrays = _lay_out(plan.order, plan.cuts, edges, table)
    lo, hi, batches, offsets, starts = arrays
    return RowPlan(lo, hi, batches, offsets, edges, plan.cuts, starts) if wrong < 0 else int(wrong)


def plan_dense(plan: WindowPlan, widths: Sequence[int]) -> RowPlan:
    """Lay out dense rows, from the elements that a row has in each reading."""
    n = len(plan.order)
    rows = np.concatenate([np.empty(0, np.int64), *(reading.ranges.rows for reading in plan.readings)])
    of_rows = np.repeat(np.array(widths, np.int64), np.diff(plan.edges))
    lo, hi, batches, offsets, starts = _lay_out_dense(plan.order, plan.cuts, rows, of_rows)
    assert len(lo) == n
    return RowPlan(lo, hi, batches, offsets, plan.edges, plan.cuts, starts)


@inline
def _distribute(order: Any, cuts: Any, lo: Any, hi: Any) -> Any:
    """Turn the rows' extents, in the order of reading, into the batches' layout."""
    n, n_batches = order.size, cuts.size - 1
    lengths, first, number = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        lengths[order[i]] = hi[i] - lo[i]
    starts = np.empty(n + n_batches, np.int64)
    for b in range(n_batches):
        end = 0
        for w in range(cuts[b], cuts[b + 1]):
            first[w], number[w], starts[w + b] = end, b, end
            end += lengths[w]
        starts[cuts[b + 1] + b] = end
    batches, offsets = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        batches[i], offsets[i] = number[order[i]], first[order[i]]
    return batches, offsets, starts


@Kernel
def _write_indptrs(starts: Any, cuts: Any, table: Any) -> None:
    for b in range(table.shape[0]):
        size, itemsize = table[b, 1], table[b, 2]
        wide, narrow = pointer(table[b, 0], _INT64), pointer(table[b, 0], _INT32)
        first, last = cuts[b] + b, cuts[b + 1] + b
        for i in range(size):
            value = starts[min(first + i, last)]
            if itemsize == 8:
                wide[i] = value
            else:
                narrow[i] = value


@Kernel
def _lay_out(order: Any, cuts: Any, edges: Any, table: Any) -> Any:
    n = order.size
    lo, hi = np.zeros(n, np.int64), np.zeros(n, np.int64)
    wrong = -1
    for reading in range(edges.size - 1):
        size, itemsize, nnz = table[reading, 1], table[reading, 2], table[reading, 4]
        wide, narrow = pointer(table[reading, 0], _INT64), pointer(table[reading, 0], _INT32)
        places = pointer(table[reading, 3], _INT64)
        last_place = last_hi = 0
        for i in range(edges[reading], edges[reading + 1]):
            place = places[i - edges[reading]]
            if wrong < 0 and not 0 <= place < size - 1:
                wrong = reading
            if wrong >= 0:
                break
            if itemsize == 8:
                begin, end = wide[place], wide[place + 1]
            else:
                begin, end = np.int64(narrow[place]), np.int64(narrow[place + 1])
            if begin < 0 or end < begin or end > nnz or (begin < last_hi and place != last_place):
                wrong = reading
            lo[i], hi[i], last_place, last_hi = begin, end, place, end
    if wrong >= 0:
        lo[:] = hi[:] = 0
    batches, offsets, starts = _distribute(order, cuts, lo, hi)
    return wrong, lo, hi, batches, offsets, starts


@Kernel
def _lay_out_dense(order: Any, cuts: Any, rows: Any, widths: Any) -> Any:
    lo = rows * widths
    hi = lo + widths
    batches, offsets, starts = _distribute(order, cuts, lo, hi)
    return lo, hi, batches, offsets, starts
