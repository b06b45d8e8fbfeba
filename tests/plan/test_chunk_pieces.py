"""Are pieces of chunks counted and divided right, and are ranges refused that cannot be cut? Tables of cases."""

from __future__ import annotations

import numpy as np
import pytest

from annbatch.plan.chunk_pieces import Pieces, cut, range_offsets, shard_starts
from annbatch.plan.row_places import RowPlan

NOTHING = np.empty(0, np.int64)


def test_rows_are_cut_at_the_chunks_of_each_array():
    """Three stores of two arrays each, and two batches; an empty row, one that is wanted twice, one of three chunks."""
    rows = RowPlan(
        lo=np.array([0, 2, 2, 2, 1, 4, 5]),
        hi=np.array([2, 2, 9, 9, 4, 6, 6]),
        batches=np.array([0, 0, 1, 0, 1, 1, 0]),
        offsets=np.array([0, 2, 5, 2, 0, 3, 9]),
        edges=np.array([0, 4, 6, 7]),
        cuts=NOTHING,
        starts=NOTHING,
    )
    bases = np.array([[1000, 2000], [3000, 5000]])
    first, second = cut(rows, np.array([[4, 2, 5], [100, 3, 1]]), bases, np.array([1, 8]))
    assert contents(first) == [
        # Of the first store, in chunks of four.
        [(0, [(0, 2, 1000), (2, 2, 2005), (2, 2, 1002)]), (1, [(0, 4, 2007), (0, 4, 1004)]),
         (2, [(0, 1, 2011), (0, 1, 1008)])],
        # Of the second, in chunks of two.
        [(0, [(1, 1, 2000)]), (1, [(0, 2, 2001)]), (2, [(0, 2, 2003)])],
        # Of the third, in chunks of five.
        [(1, [(0, 1, 1009)])],
    ]  # fmt: skip
    assert contents(second) == [
        [(0, [(0, 2, 3000), (2, 7, 5040), (2, 7, 3016)])],
        [(0, [(1, 2, 5000)]), (1, [(0, 1, 5016), (1, 2, 5024)])],
        [(5, [(0, 1, 3072)])],
    ]
    # Both have the same long arrays, which hold the pieces of the two and no more.
    assert first.sources is second.sources
    for long in (first.sources, first.lengths, first.targets):
        assert len(long) == second.bounds[-1]


def contents(pieces: Pieces) -> list[list[tuple[int, list[tuple[int, int, int]]]]]:
    """Give for each array its chunks, each with the first element, the length and the address of its pieces."""
    assert len(pieces.bounds) == len(pieces.chunks) + 1 == pieces.edges[-1] + 1
    moved = list(zip(pieces.sources.tolist(), pieces.lengths.tolist(), pieces.targets.tolist(), strict=True))
    of_chunks = [
        (chunk, moved[pieces.bounds[c] : pieces.bounds[c + 1]]) for c, chunk in enumerate(pieces.chunks.tolist())
    ]
    return [of_chunks[a:b] for a, b in zip(pieces.edges[:-1], pieces.edges[1:], strict=True)]


def test_pieces_of_some_arrays():
    """Three arrays, the second without chunks."""
    pieces = Pieces(np.array([3, 5, 0, 1, 2]), (0, 2, 2, 5), np.arange(6) * 2, *[np.zeros(10, np.int64)] * 3)
    for first, stop, chunks, edges, bounds in (
        (0, 1, [3, 5], (0, 2), [0, 2, 4]),
        (0, 2, [3, 5], (0, 2, 2), [0, 2, 4]),
        (1, 2, [], (0, 0), [4]),
        (1, 3, [0, 1, 2], (0, 0, 3), [4, 6, 8, 10]),
    ):
        part = pieces.of_arrays(first, stop)
        assert (part.chunks.tolist(), part.edges, part.bounds.tolist()) == (chunks, edges, bounds)
        assert part.sources is pieces.sources
    part = pieces.part(1, 3)
    assert (part.chunks.tolist(), part.edges, part.bounds.tolist()) == ([5, 0], (0, 1, 1, 2), [2, 4, 6])


def test_shards_begin_where_the_number_of_a_chunk_says():
    chunks = np.array([0, 1, 2, 3, 4, 9, 11, 12, 3, 4, 5, 6])
    assert shard_starts(chunks, 3, 0, 8) == [0, 3, 5, 7]
    assert shard_starts(chunks, 1, 0, 8) == list(range(8))
    assert shard_starts(chunks, 100, 0, 8) == [0]
    assert shard_starts(chunks, 3, 8, 12) == [8, 11]
    assert shard_starts(chunks, 3, 5, 5) == []


@pytest.mark.parametrize(
    ("starts", "stops", "offsets"),
    [
        ([], [], [0]),
        ([0], [9], [0, 9]),
        ([9], [9], [0, 0]),
        ([0, 0, 2], [0, 4, 4], [0, 0, 4, 6]),
        ([1, 1, 1], [4, 4, 6], [0, 3, 6, 11]),
        ([0, 2, 5], [3, 5, 6], [0, 3, 6, 7]),
    ],
)
def test_ranges_that_ascend_lie_one_behind_the_other(starts: list[int], stops: list[int], offsets: list[int]):
    found = range_offsets(np.array(starts, np.int64), np.array(stops, np.int64), 9)
    assert not isinstance(found, str)
    assert found.tolist() == offsets


@pytest.mark.parametrize(
    ("starts", "stops", "text"),
    [
        ([0, 3], [10, 4], "ranges must lie within 9 elements, got 0..10"),
        ([5, 2], [6, 1], "ranges must lie within 9 elements, got 2..6"),
        ([5, -1], [6, 7], "ranges must lie within 9 elements, got -1..7"),
        # What is beyond the elements comes first, wherever it stands.
        ([5, 3, 8], [6, 4, 10], "ranges must lie within 9 elements, got 3..10"),
        ([8, 3, 4], [10, 4, 5], "ranges must lie within 9 elements, got 3..10"),
        ([0, 5, 3], [1, 6, 7], "ranges must ascend"),
        ([0, 1, 2], [1, 6, 5], "ranges must ascend"),
        ([3, 0, 5], [4, 9, 9], "ranges must ascend"),
        ([1, 2, 3], [9, 4, 4], "ranges must ascend"),
    ],
)
def test_what_is_wrong_with_ranges_is_said(starts: list[int], stops: list[int], text: str):
    assert range_offsets(np.array(starts), np.array(stops), 9) == text
