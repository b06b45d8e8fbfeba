"""Does every element of every wanted row get one destination, from the right place in the right chunk?"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.plan.chunk_pieces import Pieces, cut, cut_ranges, range_offsets
from annbatch.plan.row_places import RowPlan, plan_dense, plan_sparse
from annbatch.plan.window import Found, plan_readings

store_rows = st.lists(st.integers(0, 3000), min_size=1, max_size=6).filter(any)


def cuts_of(n_rows: int, wanted: list[int]) -> np.ndarray:
    return np.array([0, *sorted(w % (n_rows + 1) for w in wanted), n_rows], np.int64)


@given(store_rows, st.lists(st.integers(0, 10**6), max_size=60), st.integers(0, 8), st.integers(0, 2**40))
def test_rows_are_sorted_split_by_store_and_read_in_ranges(sizes, wanted, max_gap, before):
    """A first store of empty rows makes the numbers large."""
    sizes = [before, *sizes]
    first_rows = np.cumsum([0, *sizes])
    rows = before + np.array(wanted, np.int64) % sum(sizes[1:])
    plan = plan_readings(rows, cuts_of(len(rows), []), first_rows, max_gap)
    np.testing.assert_array_equal(plan.order, np.argsort(rows, kind="stable"))
    found = []
    for reading in plan.readings:
        ranges, local = reading.ranges, rows[plan.order[reading.first : reading.stop]] - first_rows[reading.store]
        np.testing.assert_array_equal(ranges.rows, local)
        assert ((local >= 0) & (local < sizes[reading.store])).all()
        found += local.tolist()
        assert (ranges.starts[1:] - ranges.stops[:-1] > max_gap).all()
        for more in (0, 1, 3):
            wider = ranges.widened(more)
            buffer = np.concatenate([np.arange(a, b) for a, b in zip(wider.starts, wider.stops, strict=True)])
            for k in range(more + 1):
                np.testing.assert_array_equal(buffer[wider.places + k], local + k)
    assert len(found) == len(rows)
    assert [reading.store for reading in plan.readings] == sorted({reading.store for reading in plan.readings})


@pytest.mark.parametrize("rows", [[-1], [0, 30], [5, 2**62]])
def test_a_row_that_no_store_has_is_refused(rows):
    with pytest.raises(IndexError, match=r"rows must be in range\(30\)"):
        plan_readings(np.array(rows), np.array([0, len(rows)]), np.array([0, 10, 30]))


@st.composite
def windows(draw):
    """Stores of rows with 0 to 12 elements, wanted rows with repeats, and cuts that may leave batches empty."""
    lengths = draw(st.lists(st.lists(st.integers(0, 12), max_size=12), min_size=1, max_size=4).filter(any))
    n_obs = sum(map(len, lengths))
    rows = np.array(draw(st.lists(st.integers(0, n_obs - 1), max_size=40)), np.int64)
    cuts = cuts_of(len(rows), draw(st.lists(st.integers(0, 100), max_size=5)))
    first_rows = np.cumsum([0, *map(len, lengths)])
    return plan_readings(rows, cuts, first_rows, draw(st.integers(0, 3))), rows, lengths, first_rows


@given(windows(), st.sampled_from(["i4", "i8", "u4"]), st.data())
def test_every_element_goes_to_its_address(window, indptr_dtype, data):
    """Two arrays a store, with chunks of their own; rows may straddle several chunks and be wanted more than once."""
    plan, rows, lengths, first_rows = window
    indptrs = [np.cumsum([0, *of_store]).astype(indptr_dtype) for of_store in lengths]
    readings = plan.readings
    found = [Found(indptrs[reading.store], reading.ranges.rows) for reading in readings]
    layout = plan_sparse(plan, found, [int(indptrs[reading.store][-1]) for reading in readings])
    assert isinstance(layout, RowPlan)

    all_lengths = np.concatenate([np.empty(0, np.int64), *(np.array(of_store, np.int64) for of_store in lengths)])
    batches = [rows[a:b] for a, b in pairwise(plan.cuts)]
    for b, own in enumerate(batches):
        np.testing.assert_array_equal(layout.indptr(b), np.cumsum([0, *all_lengths[own]]))
    assert layout.n_elements == [int(all_lengths[own].sum()) for own in batches]
    written = [np.full(len(own) + 1 + b % 3, -1, "i8" if b % 2 else "i4") for b, own in enumerate(batches)]
    layout.write_indptrs(written)
    for b, indptr in enumerate(written):
        own = layout.indptr(b)
        assert indptr.tolist() == own.tolist() + [own[-1]] * (len(indptr) - len(own))

    itemsizes = np.array([2, 8])
    bases = np.array([[10**6 * (1 + b) + 10**9 * part for b in range(len(batches))] for part in range(2)])
    sizes = st.integers(1, 15)
    chunk_elements = np.array([[data.draw(sizes) for _ in readings] for _ in range(2)], np.int64).reshape(2, -1)
    for part, pieces in enumerate(cut(layout, chunk_elements, bases, itemsizes)):
        moved = moved_by(pieces, chunk_elements[part], int(itemsizes[part]))
        expected = {}
        for b, own in enumerate(batches):
            address = int(bases[part, b])
            for row in own.tolist():
                store = int(np.searchsorted(first_rows, row, side="right")) - 1
                reading = [reading.store for reading in readings].index(store)
                lo, hi = indptrs[store][row - first_rows[store] :][:2].tolist()
                for element in range(lo, hi):
                    expected[address] = (reading, element)
                    address += int(itemsizes[part])
        assert moved == expected


def moved_by(pieces: Pieces, chunk_elements: np.ndarray, itemsize: int) -> dict[int, tuple[int, int]]:
    """Give address -> (array, element) of what the pieces move; check what holds for all pieces."""
    moved: dict[int, tuple[int, int]] = {}
    assert len(pieces.edges) == len(chunk_elements) + 1
    assert len(pieces.bounds) == len(pieces.chunks) + 1
    for array, n in enumerate(chunk_elements.tolist()):
        own = range(pieces.edges[array], pieces.edges[array + 1])
        chunks = pieces.chunks[own.start : own.stop]
        assert (np.diff(chunks) > 0).all(), "each chunk is read once, forwards"
        for c, chunk in zip(own, chunks.tolist(), strict=True):
            assert pieces.bounds[c + 1] > pieces.bounds[c], "a chunk that nobody wants is not read"
            for piece in range(pieces.bounds[c], pieces.bounds[c + 1]):
                source, length = int(pieces.sources[piece]), int(pieces.lengths[piece])
                assert length >= 1
                assert 0 <= source < source + length <= n
                for k in range(length):
                    address = int(pieces.targets[piece]) + k * itemsize
                    assert address not in moved
                    moved[address] = (array, chunk * n + source + k)
    return moved


@given(windows(), st.integers(0, 5))
def test_dense_rows(window, width):
    plan, rows, _, first_rows = window
    layout = plan_dense(plan, [width] * len(plan.readings))
    local = rows[plan.order] - first_rows[np.searchsorted(first_rows, rows[plan.order], side="right") - 1]
    np.testing.assert_array_equal(layout.lo, local * width)
    np.testing.assert_array_equal(layout.hi, local * width + width)
    for b, (start, stop) in enumerate(pairwise(plan.cuts)):
        np.testing.assert_array_equal(layout.indptr(b), np.arange(stop - start + 1) * width)


HOSTILE = {
    "descends": [0, 4, 3, 9, 12],
    "negative": [-3, 4, 5, 9, 12],
    "beyond the elements": [0, 4, 5, 9, 13],
    "huge": [0, 4, 2**62, 2**62 + 1, 2**62 + 2],
    "wraps": [0, 4, 2**63 - 1, -(2**63), 12],
    "overlaps a later row": [0, 12, 3, 9, 12],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_indptr_that_lies_is_named_before_anything_follows_it(name):
    good, bad = np.arange(0, 15, 3), np.array(HOSTILE[name])
    rows = np.array([6, 4, 0, 5, 7, 0])
    plan = plan_readings(rows, np.array([0, 3, 6]), np.array([0, 4, 8]))
    first, second = plan.readings
    found = [Found(good, first.ranges.rows), Found(bad, second.ranges.rows)]
    assert plan_sparse(plan, found, [12, 12]) == 1
    assert isinstance(plan_sparse(plan, [found[0], Found(good, second.ranges.rows)], [12, 12]), RowPlan)


@given(st.lists(st.integers(0, 60), max_size=20), st.integers(1, 9))
def test_ranges_are_cut_into_one_buffer(ends, chunk_elements):
    ends = sorted(ends[: len(ends) // 2 * 2])
    starts, stops = np.array(ends[::2], np.int64), np.array(ends[1::2], np.int64)
    offsets = range_offsets(starts, stops, 60)
    assert not isinstance(offsets, str)
    pieces = cut_ranges(starts, stops, offsets, chunk_elements, 1000, 4)
    elements = np.concatenate([np.empty(0, int), *(np.arange(a, b) for a, b in zip(starts, stops, strict=True))])
    moved = moved_by(pieces, np.array([chunk_elements]), 4)
    assert moved == {1000 + 4 * i: (0, element) for i, element in enumerate(elements.tolist())}
    assert offsets[-1] == len(elements)


def test_parts_touch_few_files():
    """Two arrays, of three and of two chunks in a file."""
    chunks = np.array([0, 1, 2, 3, 8, 11, 0, 1, 4, 5, 6])
    bounds = np.arange(12) * 2
    pieces = Pieces(chunks, (0, 6, 11), bounds, *[np.zeros(22, np.int64)] * 3)
    parts = pieces.parts([3, 2], max_files=2)
    assert [part.chunks.tolist() for part in parts] == [[0, 1, 2, 3], [8, 11], [0, 1, 4, 5], [6]]
    assert [part.edges for part in parts] == [(0, 4, 4), (0, 2, 2), (0, 0, 4), (0, 0, 1)]
    assert np.concatenate([part.bounds[:-1] for part in parts]).tolist() == bounds[:-1].tolist()
