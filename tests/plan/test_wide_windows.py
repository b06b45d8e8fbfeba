"""Are rows of a window sorted right, however far they lie apart?"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.plan.window import plan_readings


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
    rows, first_rows, max_gap = window
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
