"""Which items does each consumer get in the last round, and which are left for others? Cases worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from annbatch.order.consumers import VERSION, Order, Partition, Rest, Segment, Window, _more_items, segment_of
from annbatch.order.permutation import Ints, Key, Purpose
from annbatch.testing.epochs import batches_of
from orders import Numbers

KEY = Key(5, 6, Purpose.MIX)


def test_golden_orders_are_those_of_this_version():
    """`test_the_sequence_stays_what_it_is` has their hashes."""
    assert VERSION == 1


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((0, 0), "count must be >= 1, got 0"),
        ((-1, 2), r"index must be in range\(2\), got -1"),
        ((2, 2), r"index must be in range\(2\), got 2"),
        ((0, 1, 1, 0), r"worker must be in range\(1\), got 1"),
        ((0, 1, 2, 2), r"worker must be in range\(2\), got 2"),
        ((0, 1, -1, 2), r"worker must be in range\(2\), got -1"),
    ],
)
def test_no_such_partition(numbers: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Partition(*numbers)


def parts_of(window: Window) -> tuple[list[int], list[int]]:
    return window.rows.tolist(), window.cuts.tolist()


def test_windows_are_cut_and_joined():
    window = Window(np.arange(5, 10), np.array([0, 2, 2, 5]))
    assert parts_of(window.behind(0)) == ([5, 6, 7, 8, 9], [0, 2, 2, 5])
    assert parts_of(window.behind(1)) == ([7, 8, 9], [0, 0, 3])
    assert parts_of(window.behind(3)) == ([], [0])
    assert Window.joined([window]) is window
    assert parts_of(Window.joined([window, window.behind(1)])) == ([*range(5, 10), 7, 8, 9], [0, 2, 2, 5, 5, 8])


# n, batch_items, batches_per_window, least_items, count, endless: the batches of each consumer.
DEALT: list[tuple[tuple[int, int, int, int, int, bool], list[Any]]] = [
    ((0, 2, 2, 0, 2, False), [[], []]),
    ((8, 2, 2, 0, 2, False), [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
    ((10, 2, 2, 0, 2, False), [[[0, 1], [2, 3], [8]], [[4, 5], [6, 7], [9]]]),
    ((10, 2, 2, 1, 2, False), [[[0, 1], [2, 3], [8]], [[4, 5], [6, 7], [9]]]),
    ((10, 2, 2, 2, 2, False), [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
    ((10, 2, 2, 2, 2, True), [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
    ((10, 2, 2, 0, 2, True), [[[0, 1], [2, 3], [8, 9]], [[4, 5], [6, 7], [10, 11]]]),
    ((13, 2, 2, 0, 2, False), [[[0, 1], [2, 3], [8], [9]], [[4, 5], [6, 7], [10, 11], [12]]]),
    ((13, 2, 2, 1, 2, False), [[[0, 1], [2, 3], [8, 9]], [[4, 5], [6, 7], [10, 11]]]),
    ((14, 2, 2, 1, 2, False), [[[0, 1], [2, 3], [8, 9], [10]], [[4, 5], [6, 7], [11, 12], [13]]]),
    (
        (29, 2, 2, 0, 3, False),
        [
            [[0, 1], [2, 3], [12, 13], [14, 15], [24]],
            [[4, 5], [6, 7], [16, 17], [18, 19], [25, 26]],
            [[8, 9], [10, 11], [20, 21], [22, 23], [27, 28]],
        ],
    ),
    ((1, 2, 1, 0, 2, False), [[[]], [[0]]]),
    ((1, 2, 1, 1, 2, False), [[], []]),
    ((2, 1, 5, 0, 1, False), [[[0], [1]]]),
]


@pytest.mark.parametrize(("asked", "expected"), DEALT)
def test_items_are_dealt(asked: tuple[int, int, int, int, int, bool], expected: list[Any]):
    n, batch_items, size, least, count, endless = asked
    segment = Segment(Numbers(n, batch_items=batch_items, endless=endless), KEY, size, least, count)
    assert segment.n_batches == len(expected[0])
    assert segment.n_windows == -(-len(expected[0]) // size)
    for index, batches in enumerate(expected):
        assert batches_of(segment, index) == batches


def test_each_window_has_words_of_its_own():
    order = Numbers(29, batch_items=2)
    segment = Segment(order, KEY, 2, 0, 3)
    for number, index, extent in [(0, 0, (0, 4)), (1, 2, (20, 24)), (2, 1, (25, 27))]:
        order.asked.clear()
        segment.window(number, index)
        assert order.asked == [(*extent, replace(KEY, item=3 * number + index))]


def test_a_batch_holds_the_first_rows_of_its_items_and_then_the_others():
    segment = Segment(Numbers(5, batch_items=2, widths=[2, 1, 3, 0, 2]), KEY, 3, 0, 1)
    window = segment.window(0, 0)
    assert window.rows.tolist() == [0, 10, 1, 20, 21, 22, 40, 41]
    assert window.cuts.tolist() == [0, 3, 6, 8]


def test_items_are_halved_where_they_may_be():
    def dealt(*widths: int, least: int = 0, divisible: bool = True) -> list[Any]:
        segment = Segment(Numbers(len(widths), widths=widths, divisible=divisible), KEY, 2, least, 2)
        return [batches_of(segment, index) for index in range(2)]

    assert dealt(5) == [[[0, 1, 2]], [[3, 4]]]
    assert dealt(2, 5, 3) == [[[0, 1], [10, 11, 12]], [[13, 14], [20, 21, 22]]]
    assert dealt(2, 5, 3, least=1) == [[[0, 1]], [[10, 11, 12, 13, 14]]]
    assert dealt(2, 5, 3, divisible=False) == [[[0, 1], []], [[10, 11, 12, 13, 14], [20, 21, 22]]]
    # Behind full windows.
    whole = [[[0], [10]], [[20], [30]]]
    assert dealt(1, 1, 1, 1, 3) == [[*whole[0], [40, 41]], [*whole[1], [42]]]
    order = Numbers(7, widths=[1, 1, 1, 1, 3, 1, 1], divisible=True)
    Segment(order, KEY, 2, 0, 2).window(1, 1)
    assert order.asked == [(4, 7, replace(KEY, item=2))]

    # Nobody gets items of others.
    segment = Segment(Numbers(3, widths=[1, 1, 1], divisible=True), KEY, 2, 0, 2)
    assert [parts_of(segment.window(0, index)) for index in range(2)] == [([0, 10], [0, 1, 2]), ([20], [0, 1, 1])]


@pytest.mark.parametrize(
    ("items", "n", "divisible", "expected"),
    [
        ([[1, 2]], 2, True, [[1, -1], [2, -1]]),
        ([[1, 2]], 2, False, [[1, 2], [-1, -1]]),
        ([[0, 1, 2]], 2, True, [[0, 1, -1], [2, -1, -1]]),
        ([[3, -1], [0, 4]], 3, True, [[3, -1], [0, -1], [4, -1]]),
        ([[3, -1], [0, -1]], 3, True, [[3, -1], [0, -1], [-1, -1]]),
        ([[1, 2], [3, 4]], 4, True, [[1, -1], [2, -1], [3, -1], [4, -1]]),
        ([[1, 2], [3, 4]], 2, True, [[1, 2], [3, 4]]),
        ([[1, 2], [3, 4]], 1, False, [[1, 2], [3, 4]]),
        (np.empty((0, 2)), 2, True, [[-1, -1], [-1, -1]]),
    ],
    ids=str,
)
def test_more_items(items: Any, n: int, divisible: bool, expected: list[list[int]]):
    assert _more_items(np.array(items, np.int64), n, divisible=divisible).tolist() == expected


# Batches that each of three consumers has had: what is left.
LEFT = {
    1: [2, 3, 6, 7, 10, 11, *range(12, 33)],
    2: list(range(12, 33)),
    3: [14, 15, 18, 19, 22, 23, *range(24, 33)],
    4: list(range(24, 33)),
    5: [26, 29, 32],
}


@pytest.mark.parametrize("n_batches", LEFT)
def test_what_is_left_is_an_order(n_batches: int):
    # Of the last nine items, each consumer gets three: a batch of two, and one of one.
    rest = Rest(Segment(Numbers(33, batch_items=2), KEY, 2, 0, 3), n_batches)
    left = LEFT[n_batches]
    assert len(rest) == len(left)
    for start in range(len(left) + 1):
        for stop in range(start, len(left) + 1):
            found = rest.items(start, stop, KEY)
            assert found.shape == (stop - start, 1)
            assert found[:, 0].tolist() == left[start:stop]


def test_what_no_window_has_reached_is_drawn_with_the_key_that_is_asked_for():
    order, key = Numbers(33, batch_items=2), replace(KEY, item=17)
    Rest(Segment(order, KEY, 2, 0, 3), 1).items(6, 9, key)
    assert order.asked == [(12, 15, key)]


def test_what_drop_last_left_out_is_left():
    rest = Rest(Segment(Numbers(33, batch_items=2), KEY, 2, 2, 3), 5)
    assert rest.items(0, len(rest), KEY)[:, 0].tolist() == [30, 31, 32]


def test_nothing_is_left_of_an_endless_order_that_went_beyond_its_end():
    segment = Segment(Numbers(10, batch_items=2, endless=True), KEY, 2, 0, 2)
    assert len(Rest(segment, 3)) == 0


def test_what_is_left_is_of_the_same_kind():
    for order in (Numbers(9), Numbers(9, batch_items=2, endless=True), Numbers(9, widths=[2] * 9, divisible=True)):
        rest = Rest(Segment(order, KEY, 3, 0, 1), 1)
        assert (rest.batch_items, rest.endless, rest.divisible) == (order.batch_items, order.endless, order.divisible)


class Widening(Order):
    """Items of one row, from the fifth one on of two."""

    batch_items = 2

    def __len__(self) -> int:
        return 6

    def items(self, start: int, stop: int, key: Key) -> Ints:
        numbers = np.arange(start, stop)
        return numbers if stop <= 4 else np.stack([numbers, numbers + 100], axis=1)


def test_items_of_different_widths_are_joined():
    rest = Rest(Segment(Widening(), KEY, 2, 0, 1), 1)
    assert rest.items(0, 4, KEY).tolist() == [[2, -1], [3, -1], [4, 104], [5, 105]]


def test_orders_have_an_end_and_whole_items_unless_they_say_otherwise():
    assert (Order.endless, Order.divisible) == (False, False)


@pytest.mark.parametrize(
    ("parts", "count", "done", "part", "n_before"),
    [
        ([], 3, 0, 0, 0),
        ([(3, 1)], 3, 1, 0, 0),
        ([(3, 1), (3, 2)], 3, 3, 0, 0),
        ([(3, 5)], 3, 5, 0, 0),
        ([(3, 0), (2, 1)], 2, 1, 0, 0),
        ([(3, 1)], 2, 0, 1, 6),
        ([(3, 1), (2, 1), (2, 1)], 2, 2, 1, 6),
        ([(3, 1), (2, 1)], 3, 0, 2, 10),
        ([(3, 1), (2, 0)], 3, 1, 0, 0),
    ],
)
def test_where_consumers_go_on(parts: list[tuple[int, int]], count: int, done: int, part: int, n_before: int):
    order = Numbers(29, batch_items=2)
    segment, found = segment_of(order, replace(KEY, purpose=Purpose.LAYOUT), 2, 0, parts, count)
    assert found == done
    assert segment.count == count
    assert segment.key == replace(KEY, part=part)
    assert (segment.order is order) == (part == 0)
    assert len(segment.order) == 29 - n_before


@pytest.mark.parametrize("n_batches", [6, -1])
def test_more_batches_than_there_are(n_batches: int):
    with pytest.raises(ValueError, match=rf"^each of 3 consumers gets 5 batches, not {n_batches}$"):
        segment_of(Numbers(29, batch_items=2), KEY, 2, 0, [(3, n_batches)], 3)
