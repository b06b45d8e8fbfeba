"""Are random orders uniform, reversible and always the same?"""

from __future__ import annotations

import numpy as np
import pytest

from annbatch.order import permutation as permutation_module
from annbatch.order.permutation import HELD_LIMIT, MAX_WORD, Feistel, Held, Key, Purpose, permutation, shuffle, shuffled


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 100, 1000, 4097])
def test_feistel_is_a_bijection_and_knows_its_inverse(n):
    order = Feistel.make(n, Key(3, 4, Purpose.BLOCKS))
    positions = np.arange(n, dtype=np.int64)
    things = order.forward(positions)
    np.testing.assert_array_equal(np.sort(things), positions)
    np.testing.assert_array_equal(order.inverse(things), positions)


def test_held_knows_its_inverse():
    order = Held(shuffled(1000, Key(3, 4, Purpose.BLOCKS)))
    things = np.array([7, 999, 0, 500], np.int64)
    np.testing.assert_array_equal(order.forward(order.inverse(things)), things)


@pytest.mark.parametrize("n", [0, 1, 2, 17, 5000])
def test_shuffle_moves_and_loses_nothing(n):
    things = np.arange(n, dtype=np.int64) * 3
    shuffle(things, Key(1, 2, Purpose.MIX))
    np.testing.assert_array_equal(np.sort(things), np.arange(n) * 3)
    assert n < 17 or (things != np.arange(n) * 3).any()


def test_each_part_of_a_key_names_another_stream():
    keys = [Key(0, 0, Purpose.MIX), Key(1, 0, Purpose.MIX), Key(0, 1, Purpose.MIX), Key(0, 0, Purpose.DRAW)]
    keys += [Key(0, 0, Purpose.MIX, 1), Key(0, 0, Purpose.MIX, 0, 1)]
    words = {tuple(key.words(4).tolist()) for key in keys}
    assert len(words) == len(keys)
    # The numbers are part of the order.
    assert list(Purpose) == list(range(7))


@pytest.mark.parametrize(
    "order_of", [lambda key: shuffled(6, key), lambda key: Feistel.make(6, key).forward(np.arange(6))]
)
def test_each_thing_is_equally_often_at_each_place(order_of):
    """Chi-squared over (thing, place), 25 degrees of freedom: above 52.6 once in a thousand times."""
    n_draws = 6000
    counts = np.zeros((6, 6))
    for epoch in range(n_draws):
        counts[order_of(Key(11, epoch, Purpose.MIX)), np.arange(6)] += 1
    expected = n_draws / 6
    assert ((counts - expected) ** 2 / expected).sum() < 52.6


def test_all_orders_of_four_things_are_equally_likely():
    """Chi-squared over the 24 permutations, 23 degrees of freedom: above 49.7 once in a thousand times."""
    n_draws = 12000
    counts: dict[bytes, int] = {}
    for epoch in range(n_draws):
        order = shuffled(4, Key(5, epoch, Purpose.MIX)).tobytes()
        counts[order] = counts.get(order, 0) + 1
    expected = n_draws / 24
    assert len(counts) == 24
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 49.7


def test_the_steps_of_a_shuffle_are_the_high_bits_of_a_product():
    """The compiled 64-bit arithmetic against Python's integers."""
    key = Key(9, 9, Purpose.MIX)
    things = list(range(300))
    words = [int(word) for word in key.words(300)]
    for i in range(299, 0, -1):
        j = words[i] * (i + 1) >> 64
        things[i], things[j] = things[j], things[i]
    assert shuffled(300, key).tolist() == things


def test_a_step_goes_to_the_next_place_where_the_product_does():
    """The least word that reaches a place, and the word before it."""
    last = [2**64 - 1] * 10
    for n in range(2, 10):
        for place in range(1, n):
            reaching = -(-place * 2**64 // n)
            for word, found in ((reaching, place), (reaching - 1, place - 1)):
                things = np.arange(n)
                # All later steps leave things where they are.
                permutation_module._swap(things, np.array([*last[: n - 1], word], np.uint64))
                assert things[found] == n - 1


def test_the_network_gives_the_same_order_in_every_version():
    """Who goes on with a run would get other rows: this may only change with `annbatch.order.consumers.VERSION`."""
    order = Feistel.make(10**12, Key(3, 4, Purpose.BLOCKS))
    things = order.forward(np.array([0, 1, 10**12 - 1]))
    assert things.tolist() == [666084848177, 367516565939, 422457529441]
    assert order.inverse(things).tolist() == [0, 1, 10**12 - 1]


@pytest.mark.parametrize(
    ("n", "half_bits"), [(1, 1), (2, 1), (4, 1), (5, 2), (16, 2), (17, 3), (2**22, 11), (2**22 + 1, 12)]
)
def test_the_network_is_no_larger_than_it_must_be(n: int, half_bits: int):
    assert Feistel.make(n, Key(0, 0, Purpose.BLOCKS)).half_bits == half_bits


def test_large_permutations_take_no_memory(monkeypatch: pytest.MonkeyPatch):
    key = Key(0, 0, Purpose.BLOCKS)
    assert isinstance(permutation(HELD_LIMIT + 1, key), Feistel)
    # The limit is part of the order.
    assert HELD_LIMIT == 2**22
    monkeypatch.setattr(permutation_module, "HELD_LIMIT", 10)
    assert isinstance(permutation(10, key), Held)
    assert isinstance(permutation(11, key), Feistel)


def test_shuffled_and_held_are_what_is_documented():
    assert permutation(5, Key(0, 0, Purpose.BLOCKS)).forward(np.arange(5)).tolist() == [1, 3, 0, 4, 2]


def test_seeds_and_epochs_have_64_bits():
    assert len(Key(MAX_WORD - 1, MAX_WORD - 1, Purpose.MIX).words(1)) == 1
    for key in (Key(MAX_WORD, 0, Purpose.MIX), Key(0, MAX_WORD, Purpose.MIX)):
        with pytest.raises(OverflowError):
            key.words(1)
