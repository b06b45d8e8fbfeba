"""What do samplers do at the limits of their arguments, with classes of few rows, and out of order?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest

from annbatch.errors import InputError
from annbatch.order.permutation import Key, Purpose
from annbatch.order.row_table import Classes, Table
from annbatch.order.schedule import Schedule, Settings
from annbatch.samplers import ClassBalanced, Grouped, MatchedPairs, Stratified, Weighted
from annbatch.samplers.weighted import _largest_cap, _sums, class_shares, quantized
from annbatch.testing.epochs import Batches, epoch_batches, row_counts

# Of a 4 rows, of b 3, of c 1, of d none, and one row has no class.
CODES = np.array([0, 1, 0, 1, 2, -1, 0, 1, 0], np.int8)
KIND = Classes("kind", CODES, pd.Index(["a", "b", "c", "d"]))
N = len(CODES)


def batches(sampler: Any, batch_size: int = 2, epoch: int = 0, drop_last: bool | int = False) -> Batches:
    asked = Settings(sampler, batch_size, 1, 4, 0, drop_last)
    return epoch_batches(Schedule(asked, (4, 5), {"kind": KIND}, None, {}), epoch)[0]


def classes_in(found: Batches) -> list[str]:
    return sorted("".join(sorted("abc"[CODES[row]] for row in batch)) for batch in found)


# --- quotas -----------------------------------------------------------------------------------------------------------


def test_quotas_of_none_and_few_batches():
    assert classes_in(batches(Stratified("kind", {"a": 1, "b": 1, "d": 0}))) == ["ab"] * 3
    assert classes_in(batches(Stratified("kind", {"a": 1, "b": 1}, n_batches=1))) == ["ab"]
    # Rows for less than one batch: one all the same, in which a row comes more than once.
    assert classes_in(batches(Stratified("kind", {"c": 2}))) == ["cc"]
    assert classes_in(batches(Stratified("kind", {"a": 3, "b": 4}, n_batches=None), batch_size=7)) == ["aaabbbb"]
    with pytest.raises(ValueError, match=r"quotas\['b'\] must be >= 0, got -1"):
        batches(Stratified("kind", {"a": 3, "b": -1}))


def test_batches_of_given_classes_can_be_asked_for_in_any_order():
    """A state may begin behind the first pass through a class."""
    table = Table((4, 5), 2, 2, 0, 0, {"kind": KIND}, N, None)
    for sampler in (Stratified("kind", {"a": 1, "b": 1}), Grouped("kind", {"b": 1.0}, n_rows=20)):
        key = Key(0, 0, Purpose.MIX)
        bound = sampler.bind(table)
        order = bound(0)
        expected = [order.items(k, k + 1, key).tolist() for k in range(9)]
        for k in (5, 0, 8, 2):
            assert bound(0).items(k, k + 1, key).tolist() == expected[k]
            assert order.items(k, k + 1, key).tolist() == expected[k]


# --- groups -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "expected"),
    [
        (2, False, ["aa", "aa", "b", "bb", "c"]),
        (2, True, ["aa", "aa", "bb"]),
        (4, False, ["aaaa", "bbb", "c"]),
        (4, 3, ["aaaa", "bbb"]),
        (4, 2, ["aaaa", "bbb"]),
        (3, 2, ["aaa", "bbb"]),
    ],
)
def test_groups_of_few_rows(batch_size: int, drop_last: bool | int, expected: list[str]):
    assert classes_in(batches(Grouped("kind"), batch_size, drop_last=drop_last)) == expected


def test_numbers_of_drawn_groups():
    # None means the rows of the classes that have a weight.
    assert len(batches(Grouped("kind", {"a": 1, "c": 0}))) == 2
    assert len(batches(Grouped("kind", {"a": 1, "c": 1}))) == 2
    assert len(batches(Grouped("kind", {"a": 1, "b": 1}))) == 3
    assert len(batches(Grouped("kind", {"a": 1}, n_rows=1), batch_size=1)) == 1
    with pytest.raises(ValueError, match="n_rows must be >= 1, got 0"):
        batches(Grouped("kind", {"a": 1}, n_rows=0))


def test_groups_without_replacement_up_to_the_last_one():
    every = Grouped("kind", {"a": 1, "b": 1}, n_rows=6, replace=False)
    assert classes_in(batches(every)) == ["aa", "aa", "bb"]
    # Each batch is drawn with its share of the weight of its class: the only one of b always comes.
    two = Grouped("kind", {"a": 1, "b": 1, "c": 0}, n_rows=4, replace=False)
    assert {tuple(classes_in(batches(two, epoch=epoch))) for epoch in range(12)} == {("aa", "bb")}
    with pytest.raises(InputError, match="got 1 of 'c'"):
        batches(Grouped("kind", {"a": 1, "c": 1}, n_rows=2, replace=False))


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "n_rows", "expected"),
    [
        ([1.0], 0, [2**61]),
        ([1.0], 1, [2**61]),
        ([0.0, 0.5, 1.0], 3, [0, 2**59, 2**60]),
        ([0.0, 2.0, 8.0], 4, [0, 2**57, 2**59]),
    ],
)
def test_weights_become_integers(weights: list[float], n_rows: int, expected: list[int]):
    assert quantized(np.array(weights), n_rows).tolist() == expected


@pytest.mark.parametrize("weights", [[3, 3], [1, 2, 9], [0, 1, 1, 7], [5], [2, 2, 2, 50, 50]], ids=str)
def test_weights_are_cut_where_a_row_would_come_twice(weights: list[int]):
    for n in range(1, np.count_nonzero(weights) + 1):
        fits = [cap for cap in range(1, max(weights) + 1) if cap * n <= np.minimum(weights, cap).sum()]
        assert _largest_cap(np.array(weights), n) == max(fits)


def test_sums_are_kept_for_some_rows():
    none, own = np.empty(0, np.int8), np.array([5, 1, 0, 2, 4, 3, 1])
    assert _sums(own, none, 3).tolist() == [0, 6, 15, 16]
    assert _sums(own[:6], none, 3).tolist() == [0, 6, 15]
    assert _sums(own[:2], np.array([1, -1, 0, 0, 1, -1], np.int8), 4).tolist() == [0, 11, 12]


def test_shares_of_classes():
    counts = KIND.counts()
    assert class_shares(None, KIND, counts).tolist() == [1, 1, 1, 0]
    assert class_shares({"b": 0.25, "d": 0}, KIND, counts).tolist() == [0, 0.25, 0, 0]
    with pytest.raises(InputError, match="has no row of 'd'"):
        class_shares({"b": 1, "d": 0.5}, KIND, counts)


def test_numbers_of_drawn_rows():
    counts = row_counts([batches(ClassBalanced("kind", {"a": 1, "b": 3, "c": 0}, n_rows=16))])
    assert counts == {row: 1 if code == 0 else 4 for row, code in enumerate(CODES.tolist()) if code in (0, 1)}
    for weights, n_rows in [({"a": 1, "c": 0}, 4), ({"a": 1, "b": 1}, 7), (None, 8)]:
        assert sum(row_counts([batches(ClassBalanced("kind", weights))]).values()) == n_rows
    # A class of one row, and a weight of one unit.
    assert row_counts([batches(ClassBalanced("kind", {"c": 2}, n_rows=5))]) == {4: 5}
    assert row_counts([batches(Weighted([1, 2**-58, *[0] * 7], n_rows=2, replace=False))]) == {0: 1, 1: 1}
    assert sum(row_counts([batches(Weighted(np.ones(N)))]).values()) == N
    assert len(batches(Weighted(np.ones(N), n_rows=1))) == 1
    assert row_counts([batches(Weighted(CODES == 0, n_rows=4, replace=False))]) == dict.fromkeys((0, 2, 6, 8), 1)
    with pytest.raises(ValueError, match=r"n_rows must be in \[1, 4294967296\), got 0"):
        batches(Weighted(np.ones(N), n_rows=0))
    with pytest.raises(InputError, match="weights must be finite and >= 0, got inf at position 2"):
        batches(Weighted([1, 0, np.inf, *[-1] * 6]))


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_take_the_controls_in_turn():
    """Each of 30 controls comes twice with 60 perturbed rows, however windows divide the pairs."""
    n = 90
    kind = Classes("kind", np.arange(n) % 3, pd.Index(["a", "b", "control"]))
    table = Table((n,), 4, n, 0, 0, {"kind": kind}, n, None)
    order = MatchedPairs("kind", "control").bind(table)(5)
    assert (len(order), order.batch_items, order.endless, order.divisible) == (60, 2, False, False)
    pairs = order.items(0, 60, Key(0, 5, Purpose.MIX))
    assert pairs.shape == (60, 2)
    assert sorted(pairs[:, 0].tolist()) == [row for row in range(n) if row % 3 < 2]
    assert sorted(pairs[:, 1].tolist()) == sorted([*range(2, n, 3)] * 2)
    alone = MatchedPairs("kind", "control").bind(table)(5)
    rows = np.concatenate([alone.items(a, b, Key(0, 5, Purpose.MIX, a)) for a, b in pairwise(range(0, 61, 6))])
    assert sorted(rows[:, 1].tolist()) == sorted(pairs[:, 1].tolist())


def test_contexts_need_controls_where_rows_are_perturbed():
    def pairs(kinds: list[int], plates: list[int]) -> int:
        kind = Classes("kind", np.array(kinds), pd.Index(["control", "a"]))
        plate = Classes("plate", np.array(plates), pd.Index(["p", "q"]))
        table = Table((len(kinds),), 4, 2, 0, 0, {"kind": kind, "plate": plate}, len(kinds), None)
        return len(MatchedPairs("kind", "control", ["plate"]).bind(table)(0))

    # In the second one, nobody knows what happened to the only row.
    assert pairs([0, 1, 1, -1], [0, 0, 0, 1]) == 2
    with pytest.raises(InputError, match=r"plate='q' has none \(1 contexts have none\)"):
        pairs([0, 1, 1], [0, 0, 1])
