"""Which rows of which store make a window, and in which order are they read?

Pure: no I/O, no threads. Everything is an array; whatever loops over rows is compiled and holds no GIL, because every
step that takes the GIL back may wait for another thread's turn.

1. `plan_readings` sorts a window's rows, splits them by store, and says which ranges of rows are read at once (of
   ``indptr`` and of label columns).
2. `annbatch.plan.row_places` lays out the rows of every batch.
3. `annbatch.plan.chunk_pieces` cuts the rows at chunk boundaries when the batches have memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annbatch.native import Kernel, inline

Ints = NDArray[np.int64]

MAX_GAP = 1024
"""Rows between two wanted ones that are read and thrown away rather than skipped."""


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
class Found:
    """An array that holds what is wanted of a longer one, and where in it."""

    values: NDArray[Any]
    """Contiguous, of one dimension."""
    places: Ints
    """(n_rows,) where each row's element lies."""


def address(array: NDArray[Any]) -> int:
    """Give the address of an array's first element."""
    found: int = array.__array_interface__["data"][0]
    return found


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
def _argsort(keys: Any, n: Any, low: Any, high: Any) -> Any:
    """Sort ``n`` integers in [low, high] by their digits: stable, and several times faster than by comparisons."""
    order, other, ends = np.empty(n, np.int64), np.empty(n, np.int64), np.empty(2049, np.int64)
    for i in range(n):
        order[i] = i
    shift = 0
    while shift < 63 and high - low >> shift > 0:
        for digit in range(2049):
            ends[digit] = 0
        for i in range(n):
            ends[(keys[i] - low >> shift & 2047) + 1] += 1
        for digit in range(2048):
            ends[digit + 1] += ends[digit]
        for i in range(n):
            digit = keys[order[i]] - low >> shift & 2047
            other[ends[digit]] = order[i]
            ends[digit] += 1
        for i in range(n):
            order[i] = other[i]
        shift += 11
    return order


@Kernel
def _sort(rows: Any, first_rows: Any, max_gap: Any) -> Any:
    n, n_stores = rows.size, first_rows.size - 1
    low, high = first_rows[-1], np.int64(-1)
    for i in range(n):
        low, high = min(low, rows[i]), max(high, rows[i])
    if low < 0 or high >= first_rows[-1]:
        n = 0
    order = _argsort(rows, n, low, high)
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
