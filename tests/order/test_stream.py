"""Does a stream hold every row once, in blocks of neighbours, wherever it is entered?"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.order import permutation as permutation_module
from annbatch.order import stream as stream_module
from annbatch.order.permutation import Feistel, Held, Identity, Key, Purpose, permutation, shuffled
from annbatch.order.stream import Passes, Stream, n_blocks_each
from python_kernels import run_as_python

store_rows = st.lists(st.integers(0, 40), min_size=1, max_size=6).map(tuple).filter(any)


@st.composite
def streams(draw):
    rows, chunk_size = draw(store_rows), draw(st.integers(1, 12))
    n_blocks = sum(n_blocks_each(rows, chunk_size))
    key = Key(draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 5)), Purpose.BLOCKS)
    order = draw(st.sampled_from([Identity(), Held(shuffled(n_blocks, key)), Feistel.make(n_blocks, key)]))
    return Stream(rows, chunk_size, order)


@given(streams(), st.data())
def test_every_row_once_in_blocks_of_neighbours(stream, data):
    n = len(stream)
    rows = stream.rows(0, n)
    np.testing.assert_array_equal(np.sort(rows), np.arange(n))
    edges = np.cumsum((0, *stream.store_rows))
    in_store = rows - edges[np.searchsorted(edges, rows, side="right") - 1]
    begins = np.flatnonzero(in_store % stream.chunk_size == 0)
    for begin, end in zip(begins, [*begins[1:], n], strict=True):
        assert (np.diff(rows[begin:end]) == 1).all()
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    np.testing.assert_array_equal(stream.rows(start, stop), rows[start:stop])
    positions = np.array(data.draw(st.lists(st.integers(0, n - 1), max_size=20)), np.int64)
    np.testing.assert_array_equal(stream.at(positions), rows[positions])


def test_every_part_of_a_stream_with_each_index_checked(monkeypatch: pytest.MonkeyPatch):
    run_as_python(monkeypatch, stream_module)
    # Blocks 0 and 1 are of the first store, 2 to 4 of the third one, 5 is of the last one.
    stream = Stream((5, 0, 7, 1), 3, Held(np.array([3, 0, 5, 1, 4, 2])))
    rows = [8, 9, 10, 0, 1, 2, 12, 3, 4, 11, 5, 6, 7]
    for start in range(14):
        for stop in range(start, 14):
            assert stream.rows(start, stop).tolist() == rows[start:stop]
    assert stream.at(np.arange(13)[::-1]).tolist() == rows[::-1]


def test_blocks_that_are_too_many_to_hold_come_from_a_network(monkeypatch):
    monkeypatch.setattr(permutation_module, "HELD_LIMIT", 10)
    order = permutation(54, Key(0, 0, Purpose.BLOCKS))
    assert isinstance(order, Feistel)
    rows = Stream((100, 3, 57), 3, order).rows(0, 160)
    assert sorted(rows.tolist()) == list(range(160))
    assert rows.tolist() != list(range(160))


@given(st.integers(1, 20), st.integers(0, 50), st.integers(0, 50))
def test_passes_follow_one_another(n_rows, start, n):
    def pass_at(number):
        return Stream((n_rows,), 3, permutation(-(-n_rows // 3), Key(1, number, Purpose.BLOCKS)))

    passes = Passes(n_rows, pass_at)
    whole = np.concatenate([pass_at(number).rows(0, n_rows) for number in range(101)])
    np.testing.assert_array_equal(passes.rows(start, start + n), whole[start : start + n])
