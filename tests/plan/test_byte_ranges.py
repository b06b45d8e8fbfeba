"""Do byte ranges hold each piece once, as few as the limits allow, and do groups hold each range once? Pure."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch.plan import byte_ranges
from annbatch.plan.byte_ranges import ByteRanges, merge

PIECES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 60) | st.just(-1) | st.just(0), st.integers(1, 12)), max_size=20
)


def merged(pieces: list[tuple[int, int, int]], max_gap: int, max_range: int) -> ByteRanges:
    objects, starts, nbytes = (np.array([piece[i] for piece in pieces], np.int64) for i in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_ranges, "MAX_RANGE_NBYTES", max_range)
        return merge(objects, starts, nbytes, max_gap)


@given(PIECES, st.integers(0, 9), st.sampled_from([1, 12, 30, 1000]))
def test_each_piece_lies_in_one_range(pieces: list[tuple[int, int, int]], max_gap: int, max_range: int):
    pieces = sorted(pieces, key=lambda piece: piece[0])
    ranges = merged(pieces, max_gap, max_range)
    members: list[list[tuple[int, int]]] = [[] for _ in ranges.starts]
    for (number, start, nbytes), of, offset in zip(pieces, ranges.of_piece, ranges.offsets, strict=True):
        if start < 0:
            assert (of, offset) == (-1, 0)
            continue
        assert ranges.objects[of] == number
        assert ranges.starts[of] + offset == start
        members[of].append((start, start + nbytes))
    ends = []
    for first, stop, own in zip(ranges.starts, ranges.stops, members, strict=True):
        own.sort()
        assert (first, stop) == (own[0][0], max(end for _, end in own))
        assert len(own) == 1 or stop - first <= max_range or all(end <= own[0][1] for _, end in own)
        reached = np.maximum.accumulate([end for _, end in own])
        assert all(start - end <= max_gap for (start, _), end in zip(own[1:], reached[:-1], strict=True))
        ends.append(own[0][1])
    assert np.all(np.diff(ranges.objects) >= 0)
    for i, j in pairwise(range(len(members))):
        if ranges.objects[i] == ranges.objects[j]:
            # The first piece of the next range was too far away, or would have made this one too large.
            start = ranges.starts[j]
            assert start >= ranges.starts[i]
            stop = max(ends[j], ranges.stops[i])
            assert start - ranges.stops[i] > max_gap or stop - ranges.starts[i] > max_range


@pytest.mark.parametrize(
    ("max_gap", "max_range", "expected"),
    [
        (4, 100, [(0, 16)]),
        (3, 100, [(0, 6), (10, 16)]),
        (4, 16, [(0, 16)]),
        (4, 15, [(0, 6), (10, 16)]),
    ],
)
def test_limits_are_inclusive(max_gap: int, max_range: int, expected: list[tuple[int, int]]):
    ranges = merged([(7, 10, 6), (7, 0, 6)], max_gap, max_range)
    assert list(zip(ranges.starts.tolist(), ranges.stops.tolist(), strict=True)) == expected


def test_limits_suit_requests_over_a_network():
    """A gap of 128 KiB costs less than a request; ranges of up to 4 MiB are merged."""
    kib = 2**10
    near = merge(*(np.array(values) for values in ([0, 0], [0, 129 * kib], [kib, kib])))
    far = merge(*(np.array(values) for values in ([0, 0], [0, 129 * kib + 1], [kib, kib])))
    large, too_large = (merge(*map(np.array, ([0, 0], [0, kib], [kib, 4095 * kib + more]))) for more in (0, 1))
    assert [len(ranges.starts) for ranges in (near, far, large, too_large)] == [1, 2, 1, 2]


@given(st.lists(st.integers(1, 25), max_size=4), st.integers(0, 1))
def test_groups_are_of_one_object_and_as_large_as_may_be(n_ranges: list[int], first: int):
    objects = np.repeat(np.arange(len(n_ranges)) * 3 + first, n_ranges)
    nothing = np.zeros(len(objects), np.int64)
    groups = ByteRanges(objects, nothing, nothing, nothing, nothing).groups()
    assert [i for group in groups for i in range(group.start, group.stop)] == list(range(len(objects)))
    assert all(len(set(objects[group].tolist())) == 1 for group in groups)
    sizes = [group.stop - group.start for group in groups]
    assert sizes == [min(10, n - at) for n in n_ranges for at in range(0, n, 10)]
