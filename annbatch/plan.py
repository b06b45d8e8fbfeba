"""Which rows of which store make a window, and where does each of them go?

Pure: no I/O, no threads. Everything is an array; whatever loops over rows is compiled and holds no GIL, because every
step that takes the GIL back may wait for another thread's turn.

1. `plan_readings` sorts a window's rows, splits them by store, and says which ranges of rows are read at once (of
   ``indptr`` and of label columns).
2. `plan_sparse` lays out the rows of every batch from the stores' ``indptr``, `plan_dense` from the rows' width.
3. `annbatch.pieces` cuts the rows at chunk boundaries when the batches have memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.native import Kernel, inline, view

Ints = NDArray[np.int64]

MAX_GAP = 1024
"""Rows between two wanted ones that are read and thrown away rather than skipped."""

_INT64, _INT32 = np.empty(0, np.int64), np.empty(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Rows of a store as ranges of a one-dimensional array, read one after the other into one buffer."""

    rows: Ints
    """(n_rows,) the rows, ascending; repeats are allowed."""
    starts: Ints
    """(n_ranges,) first element of each range, ascending."""
    stops: Ints
    """(n_ranges,) end of each range, exclusive; before the next start."""
    places: Ints
    """(n_rows,) where in the buffer each row lies."""
    numbers: Ints
    """(n_rows,) which range each row lies in."""

    def widened(self, more: int) -> Ranges:
        """Give ranges with ``more`` further elements behind each: ``indptr`` needs one."""
        if not more:
            return self
        return Ranges(self.rows, self.starts, self.stops + more, self.places + more * self.numbers, self.numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """The rows of a window that lie in one store."""

    store: int
    """Number of the store."""
    ranges: Ranges
    """The rows, and how they are read."""
    first: int
    """Where in the window's ascending order they begin."""
    stop: int
    """Where they end."""


@dataclass(frozen=True, slots=True, eq=False)
class WindowPlan:
    """A window in the order in which it is read."""

    order: Ints
    """(n_rows,) which row of the window comes when."""
    cuts: Ints
    """(n_batches + 1,) batch b holds rows [cuts[b], cuts[b + 1]) of the window."""
    readings: list[Reading]
    """A store each, in ascending order."""

    @property
    def edges(self) -> Ints:
        """(n_readings + 1,) where in ``order`` each reading begins."""
        return np.array([*(reading.first for reading in self.readings), len(self.order)], np.int64)


def plan_readings(rows: Ints, cuts: Ints, first_rows: Ints, max_gap: int = MAX_GAP) -> WindowPlan:
    """Sort the rows of a window, and split them by store.

    Parameters
    ----------
    rows
        (n_rows,) global row numbers, in any order; repeats are allowed.
    cuts
        (n_batches + 1,) batch b holds ``rows[cuts[b]:cuts[b + 1]]``.
    first_rows
        (n_stores + 1,) global number of each store's first row, and the number of all rows.
    max_gap
        Longest gap between rows that is read with them.

    Raises
    ------
    IndexError
        If a row number is in no store.
    """
    order, local, edges, starts, stops, range_edges, places, numbers = _sort(rows, first_rows, max_gap)
    if len(order) < len(rows):
        raise IndexError(f"rows must be in range({first_rows[-1]}), got {rows.min()} to {rows.max()}")
    readings = []
    found, found_ranges = edges.tolist(), range_edges.tolist()
    for store in range(len(found) - 1):
        a, b = found[store], found[store + 1]
        if b > a:
            these = slice(found_ranges[store], found_ranges[store + 1])
            ranges = Ranges(local[a:b], starts[these], stops[these], places[a:b], numbers[a:b])
            readings.append(Reading(store, ranges, a, b))
    return WindowPlan(order, cuts, readings)


@inline
def _argsort(keys: Any, low: Any, high: Any) -> Any:
    """Sort integers in [low, high] by their digits: stable, and several times faster than by comparisons."""
    order, other = np.arange(keys.size), np.empty(keys.size, np.int64)
    shift = 0
    while shift < 63 and high - low >> shift > 0:
        ends = np.zeros(2049, np.int64)
        for key in keys:
            ends[(key - low >> shift & 2047) + 1] += 1
        for digit in range(2048):
            ends[digit + 1] += ends[digit]
        for i in order:
            digit = keys[i] - low >> shift & 2047
            other[ends[digit]] = i
            ends[digit] += 1
        order, other = other, order
        shift += 11
    return order


@Kernel
def _sort(rows: Any, first_rows: Any, max_gap: Any) -> Any:
    n, n_stores = rows.size, first_rows.size - 1
    low, high = first_rows[-1], np.int64(-1)
    for row in rows:
        low, high = min(low, row), max(high, row)
    if low < 0 or high >= first_rows[-1]:
        n = 0
    order = _argsort(rows[:n], low, high)
    local, places, numbers = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(n, np.int64)
    starts, stops = np.empty(n, np.int64), np.empty(n, np.int64)
    edges, range_edges = np.zeros(n_stores + 1, np.int64), np.zeros(n_stores + 1, np.int64)
    i = n_ranges = 0
    for store in range(n_stores):
        first_range, buffered, last = n_ranges, 0, 0
        while i < n and rows[order[i]] < first_rows[store + 1]:
            row = rows[order[i]] - first_rows[store]
            if n_ranges == first_range or row - last > max_gap + 1:
                if n_ranges > first_range:
                    buffered += last + 1 - starts[n_ranges - 1]
                starts[n_ranges] = row
                n_ranges += 1
            local[i], last = row, row
            stops[n_ranges - 1] = row + 1
            places[i] = buffered + row - starts[n_ranges - 1]
            numbers[i] = n_ranges - 1 - first_range
            i += 1
        edges[store + 1], range_edges[store + 1] = i, n_ranges
    return order, local, edges, starts[:n_ranges], stops[:n_ranges], range_edges, places, numbers


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

    def indptr(self, b: int) -> Ints:
        """Give the indptr of a batch: its number of rows and one more, int64, from 0."""
        return self.starts[self.cuts[b] + b : self.cuts[b + 1] + b + 1]


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """An array that holds what is wanted of a longer one, and where in it."""

    values: NDArray[Any]
    """Contiguous, of one dimension."""
    places: Ints
    """(n_rows,) where each row's element lies."""


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


def plan_dense(plan: WindowPlan, width: int) -> RowPlan:
    """Lay out rows of ``width`` elements each."""
    n = len(plan.order)
    rows = np.concatenate([np.empty(0, np.int64), *(reading.ranges.rows for reading in plan.readings)])
    lo, hi, batches, offsets, starts = _lay_out_dense(plan.order, plan.cuts, rows, width)
    assert len(lo) == n
    return RowPlan(lo, hi, batches, offsets, plan.edges, plan.cuts, starts)


def address(array: NDArray[Any]) -> int:
    """Give the address of an array's first element."""
    found: int = array.__array_interface__["data"][0]
    return found


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
def _lay_out(order: Any, cuts: Any, edges: Any, table: Any) -> Any:
    n = order.size
    lo, hi = np.zeros(n, np.int64), np.zeros(n, np.int64)
    wrong = -1
    for reading in range(edges.size - 1):
        size, itemsize, nnz = table[reading, 1], table[reading, 2], table[reading, 4]
        wide, narrow = view(table[reading, 0], size, _INT64), view(table[reading, 0], size, _INT32)
        places = view(table[reading, 3], edges[reading + 1] - edges[reading], _INT64)
        last_lo = last_hi = 0
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
            again = begin == last_lo and end == last_hi
            if begin < 0 or end < begin or end > nnz or (begin < last_hi and not again):
                wrong = reading
            lo[i], hi[i], last_lo, last_hi = begin, end, begin, end
    if wrong >= 0:
        lo[:] = hi[:] = 0
    batches, offsets, starts = _distribute(order, cuts, lo, hi)
    return wrong, lo, hi, batches, offsets, starts


@Kernel
def _lay_out_dense(order: Any, cuts: Any, rows: Any, width: Any) -> Any:
    lo = rows * width
    hi = lo + width
    batches, offsets, starts = _distribute(order, cuts, lo, hi)
    return lo, hi, batches, offsets, starts
