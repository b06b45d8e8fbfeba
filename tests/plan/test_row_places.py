"""Does each row of a window get its place, and is an indptr refused that gives it none? A few rows, told one by one."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from annbatch.plan.row_places import RowPlan, plan_dense, plan_sparse
from annbatch.plan.window import Found, WindowPlan, plan_readings

# Row 1 of the second store, rows 2 and 0 of the first one, and in another batch its row 2 again. Two batches are empty.
ROWS = np.array([4, 2, 0, 2])
CUTS = np.array([0, 3, 3, 4, 4])
FIRST_ROWS = np.array([0, 3, 5])
INDPTRS = [[0, 2, 2, 7], [0, 1, 4]]


def check_places(layout: RowPlan) -> None:
    """Check what does not depend on the lengths of rows."""
    assert layout.batches.tolist() == [0, 0, 2, 0]
    assert layout.edges.tolist() == [0, 3, 4]
    assert layout.cuts.tolist() == CUTS.tolist()
    assert len(layout.starts) == len(ROWS) + len(CUTS) - 1


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_sparse_rows_get_their_places(dtype: str):
    # Elements whose numbers only this type has.
    before = {"u4": 3_000_000_000, "i8": 1 << 40, "u8": 1 << 40}.get(dtype, 0)
    plan = plan_readings(ROWS, CUTS, FIRST_ROWS)
    indptrs = [(np.array(indptr) + before).astype(dtype) for indptr in INDPTRS]
    found = [Found(indptrs[reading.store], reading.ranges.rows) for reading in plan.readings]
    layout = plan_sparse(plan, found, [before + 7, before + 4])
    assert isinstance(layout, RowPlan)
    check_places(layout)
    assert (layout.lo - before).tolist() == [0, 2, 2, 1]
    assert (layout.hi - before).tolist() == [2, 7, 7, 4]
    assert layout.offsets.tolist() == [8, 3, 0, 0]
    assert layout.n_elements == [10, 0, 5, 0]
    assert [layout.indptr(b).tolist() for b in range(4)] == [[0, 3, 8, 10], [0], [0, 5], [0]]
    written = [np.full(size, -1, kind) for size, kind in ((4, "i4"), (3, "i8"), (4, "i8"), (1, "i4"))]
    layout.write_indptrs(written)
    assert [indptr.tolist() for indptr in written] == [[0, 3, 8, 10], [0, 0, 0], [0, 5, 5, 5], [0]]


def test_dense_rows_get_their_places():
    layout = plan_dense(plan_readings(ROWS, CUTS, FIRST_ROWS), [3, 2])
    check_places(layout)
    assert layout.lo.tolist() == [0, 6, 6, 2]
    assert layout.hi.tolist() == [3, 9, 9, 4]
    assert layout.offsets.tolist() == [5, 2, 0, 0]
    assert layout.n_elements == [8, 0, 3, 0]
    assert [layout.indptr(b).tolist() for b in range(4)] == [[0, 2, 5, 8], [0], [0, 3], [0]]


@pytest.mark.parametrize("n_batches", [0, 2])
def test_a_window_without_rows_has_no_elements(n_batches: int):
    plan = plan_readings(np.empty(0, np.int64), np.zeros(n_batches + 1, np.int64), FIRST_ROWS)
    for layout in (plan_sparse(plan, [], []), plan_dense(plan, [])):
        assert isinstance(layout, RowPlan)
        assert layout.n_elements == [0] * n_batches
        written = [np.full(2, -1, np.int32) for _ in range(n_batches)]
        layout.write_indptrs(written)
        assert [indptr.tolist() for indptr in written] == [[0, 0]] * n_batches


def of_one_store(rows: list[int]) -> WindowPlan:
    return plan_readings(np.array(rows), np.array([0, len(rows)]), np.array([0, 10]))


@pytest.mark.parametrize(
    ("rows", "indptr", "is_right"),
    [
        ([0, 2, 0], [0, 4, 4, 9], True),
        ([1, 1], [0, 4, 4, 9], True),
        # Some of the elements of the row before, or all of them and more: they begin, or end, where that does.
        ([0, 2], [0, 4, 0, 4], False),
        ([0, 2], [0, 4, 0, 2], False),
        ([0, 2], [0, 4, 0, 6], False),
        ([0, 2], [0, 4, 2, 4], False),
        ([0, 2], [0, 4, 3, 9], False),
        ([1, 0], [0, 4, 3, 9], False),
        ([0], [-1, 4], False),
        ([0], [0, 10], False),
    ],
)
def test_rows_of_a_store_follow_one_another(rows: list[int], indptr: list[int], is_right: bool):
    plan = of_one_store(rows)
    layout = plan_sparse(plan, [Found(np.array(indptr), plan.readings[0].ranges.rows)], [9])
    assert isinstance(layout, RowPlan) if is_right else layout == 0


@pytest.mark.parametrize(("places", "is_right"), [([0, 1, 2], True), ([1, 2, 3], False), ([-1, 0, 1], False)])
@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_places_beyond_the_indptr_are_refused(places: list[int], is_right: bool, dtype: str):
    # What lies there in memory looks right.
    values = np.array([0, 0, 3, 6, 9, 12], dtype)[1:5]
    layout = plan_sparse(of_one_store([0, 1, 2]), [Found(values, np.array(places))], [12])
    assert isinstance(layout, RowPlan) if is_right else layout == 0


LIES = {"descends": np.array([0, 5, 3]), "too short": np.array([0, 5, 5])[:1], "too long": np.array([0, 5, 6])}


@pytest.mark.parametrize(("first", "second"), list(product(LIES, repeat=2)))
def test_the_first_of_several_stores_that_lie_is_named(first: str, second: str):
    plan = plan_readings(np.arange(6), np.array([0, 6]), np.array([0, 2, 4, 6]))
    right = np.array([0, 3, 5])
    for number, stores in enumerate([(LIES[first], LIES[second], right), (right, LIES[first], LIES[second])]):
        assert plan_sparse(plan, [Found(values, np.arange(2)) for values in stores], [5, 5, 5]) == number
