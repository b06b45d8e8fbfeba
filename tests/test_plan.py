"""Does every element of every wanted row get one destination, from the right place in the right chunk?"""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from annbatch.plan import batch_indptr, coalesce, plan_pieces


@given(st.lists(st.integers(0, 60), max_size=30), st.integers(0, 8))
def test_ranges_hold_every_wanted_row_once(rows, max_gap):
    rows = np.sort(np.array(rows, np.int64))
    ranges = coalesce(rows, max_gap)
    buffer = np.concatenate([np.arange(a, b) for a, b in zip(ranges.starts, ranges.stops, strict=True)] or [[]])
    assert len(buffer) == ranges.n_elements
    np.testing.assert_array_equal(buffer[ranges.places], rows)
    assert (ranges.starts[1:] - ranges.stops[:-1] > max_gap).all()

    more = ranges.extended()
    buffer = np.concatenate([np.arange(a, b) for a, b in zip(more.starts, more.stops, strict=True)] or [[]])
    np.testing.assert_array_equal(buffer[more.places], rows)
    np.testing.assert_array_equal(buffer[more.places + 1], rows + 1)


def test_batch_indptr():
    indptr = batch_indptr(np.array([3, 0, 2, 5]), np.array([0, 2, 2, 4]))
    assert [p.tolist() for p in indptr] == [[0, 3, 3], [0], [0, 2, 7]]


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=25),
    wanted=st.lists(st.integers(0, 10**6), max_size=40),
    chunk_elements=st.integers(1, 15),
    itemsize=st.sampled_from([1, 2, 4, 8]),
)
def test_pieces_move_every_element_to_its_address(lengths, wanted, chunk_elements, itemsize):
    """Rows may be empty, straddle several chunks, and be wanted more than once."""
    indptr = np.cumsum([0, *lengths])
    rows = np.sort(np.array(wanted, np.int64) % len(lengths))
    lo, hi = indptr[rows], indptr[rows + 1]
    targets = 1000 + np.cumsum(np.append(0, hi - lo))[:-1] * itemsize
    pieces = plan_pieces(lo, hi, targets, itemsize, chunk_elements)

    moved = {}
    for c, chunk in enumerate(pieces.chunks.tolist()):
        assert pieces.bounds[c + 1] > pieces.bounds[c], "a chunk that nobody wants is not read"
        for piece in range(pieces.bounds[c], pieces.bounds[c + 1]):
            source, length = int(pieces.sources[piece]), int(pieces.lengths[piece])
            assert length >= 1
            assert 0 <= source < source + length <= chunk_elements
            for k in range(length):
                moved[int(pieces.targets[piece]) + k * itemsize] = chunk * chunk_elements + source + k
    assert len(np.unique(pieces.chunks)) == len(pieces.chunks)
    assert (np.diff(pieces.chunks) > 0).all()
    elements = np.concatenate([np.arange(a, b) for a, b in zip(lo, hi, strict=True)] or [[]]).astype(int).tolist()
    assert [moved[1000 + i * itemsize] for i in range(len(elements))] == elements
    assert len(moved) == len(elements)
