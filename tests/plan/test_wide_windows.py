"""Are rows of a window sorted and split into ranges as they should be, however far they lie apart?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.plan import window as window_module
from annbatch.plan.window import Ranges, address, plan_readings
from python_kernels import Counted, run_as_python

CASES: dict[str, tuple[list[int], list[int], int]] = {
    "no row": ([], [0, 5], 3),
    "the only row": ([0], [0, 1], 0),
    "two rows": ([1, 0], [0, 2], 0),
    "repeats": ([5, 5, 3, 9, 5], [0, 4, 4, 6, 10], 0),
    "first and last rows of stores": ([9, 4, 3, 0, 6, 5], [0, 4, 4, 6, 10], 1),
    "stores without wanted rows": ([17, 12, 13, 31], [0, 10, 11, 20, 30, 40, 50], 1),
    "several ranges in each store": ([31, 0, 1, 25, 5, 6, 12, 20, 21, 39], [0, 19, 40], 2),
    "a digit of 11 bits": ([2047, 0, 2047, 1, 1024], [0, 4096], 0),
    "a bit more": ([2048, 0, 2049, 2048, 1], [0, 4096], 0),
    "the same low digits": ([3 << 11, 5 << 22, 1 << 11, 5 << 22, 0], [0, 1 << 20, 1 << 30], 8),
    "behind other rows": ([10**9 + step for step in (5000, 0, 4999, 2047, 2048)], [0, 10**9, 10**9 + 5001], 1),
    "high bits": ([2**61 + 3, 2**52 + 7, 9, 2**61, 2**52 + 4000, 7], [0, 2**40, 2**60, 2**62], 1024),
    "more than half of the highest number": ([2**62 + 9, 2**62 + 5, 2**62 + 2**40], [0, 2**62 + 2**41], 3),
}
"""Rows, the number of each store's first row and of all rows, and the longest gap."""


def check(rows: np.ndarray, first_rows: np.ndarray, max_gap: int) -> None:
    """Compare a plan with what NumPy says of the rows."""
    plan = plan_readings(rows, np.array([0, len(rows)]), first_rows, max_gap)
    np.testing.assert_array_equal(plan.order, np.argsort(rows, kind="stable"))
    ordered = rows[plan.order]
    assert plan.edges.tolist() == [*[reading.first for reading in plan.readings], len(rows)]
    stores = np.searchsorted(first_rows, rows, side="right") - 1
    assert [reading.store for reading in plan.readings] == np.unique(stores).tolist()
    for reading in plan.readings:
        local = ordered[reading.first : reading.stop] - first_rows[reading.store]
        ranges = reading.ranges
        np.testing.assert_array_equal(ranges.rows, local)
        # Each range begins and ends with a wanted row, and what is between two ranges is wider than the gap.
        for start, stop in zip(ranges.starts.tolist(), ranges.stops.tolist(), strict=True):
            assert {start, stop - 1} <= set(local.tolist())
            inside = [row for row in local.tolist() if start <= row < stop]
            assert all(b - a <= max_gap + 1 for a, b in pairwise(inside))
        assert (ranges.starts[1:] - ranges.stops[:-1] > max_gap).all()
        begins = np.cumsum([0, *(ranges.stops - ranges.starts)])[:-1]
        np.testing.assert_array_equal(ranges.places, begins[ranges.numbers] + local - ranges.starts[ranges.numbers])
        np.testing.assert_array_equal(ranges.numbers, np.searchsorted(ranges.starts, local, side="right") - 1)


def test_windows_with_each_index_checked(monkeypatch: pytest.MonkeyPatch):
    run_as_python(monkeypatch, window_module)
    for rows, first_rows, max_gap in CASES.values():
        check(np.array(rows, np.int64), np.array(first_rows), max_gap)


def test_a_window_is_sorted_by_the_digits_in_which_its_rows_differ(monkeypatch: pytest.MonkeyPatch):
    """Each further digit of 11 bits takes two more looks at each row, wherever in the stores the rows lie."""
    run_as_python(monkeypatch, window_module)
    n_reads = []
    for span in (1, 2**11 - 1, 2**11, 2**22 - 1, 2**22):
        rows: Any = Counted(2**40 + np.array([span, 0, span, 1]))
        plan = plan_readings(rows, np.array([0, 4]), np.array([0, 10, 2**41]))
        assert rows.values[plan.order].tolist() == sorted(rows.values)
        n_reads.append(rows.n_reads)
    assert [n - n_reads[0] for n in n_reads] == [0, 0, 8, 8, 16]


@st.composite
def windows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows of stores that have up to 2**62 of them: of each digit of 11 bits some need it, and some do not."""
    n_bits = draw(st.integers(1, 62))
    n_rows = draw(st.integers(1 << n_bits - 1, 1 << n_bits))
    low = draw(st.integers(0, n_rows - 1) | st.just(0))
    near = st.integers(0, 5000).map(lambda step: min(low + step, n_rows - 1))
    rows = draw(st.lists(st.integers(low, n_rows - 1) | near, min_size=1, max_size=40))
    edges = sorted(draw(st.lists(st.integers(0, n_rows), max_size=3)))
    return np.array(rows), np.array([0, *edges, n_rows]), draw(st.integers(0, 1024))


@given(windows())
def test_rows_are_sorted_and_split_by_store(window: tuple[np.ndarray, np.ndarray, int]):
    check(*window)


def test_a_gap_is_read_if_it_is_no_longer_than_is_allowed():
    for step, n_ranges in ((5, 1), (6, 2)):
        plan = plan_readings(np.array([step, 0]), np.array([0, 2]), np.array([0, 100]), max_gap=4)
        assert len(plan.readings[0].ranges.starts) == n_ranges
    # Up to 1,024 rows, unless somebody says otherwise.
    for step, n_ranges in ((1025, 1), (1026, 2)):
        plan = plan_readings(np.array([0, step]), np.array([0, 2]), np.array([0, 2000]))
        assert len(plan.readings[0].ranges.starts) == n_ranges


@pytest.mark.parametrize("rows", [[0, 2**40], [-1, 3], [2**40 + 1]])
def test_rows_of_no_store_are_refused(rows: list[int]):
    with pytest.raises(IndexError, match="rows must be in range"):
        plan_readings(np.array(rows), np.array([0, len(rows)]), np.array([0, 2**40]))


def test_each_range_is_widened_and_moves_those_behind_it():
    rows, starts, stops = np.array([2, 4, 8, 9, 15]), np.array([2, 8, 15]), np.array([5, 10, 16])
    ranges = Ranges(rows, starts, stops, np.array([0, 2, 3, 4, 5]), np.array([0, 0, 1, 1, 2]))
    assert ranges.widened(0) is ranges
    wider = ranges.widened(2)
    assert (wider.starts.tolist(), wider.stops.tolist()) == ([2, 8, 15], [7, 12, 18])
    assert wider.places.tolist() == [0, 2, 5, 6, 9]
    assert wider.rows is rows
    assert wider.numbers is ranges.numbers


def test_the_address_of_an_array_is_where_its_first_element_lies():
    array = np.arange(7, dtype=np.uint16)
    assert address(array) == array.ctypes.data
    assert address(array[3:]) == address(array) + 6
