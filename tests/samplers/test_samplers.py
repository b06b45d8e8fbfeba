"""Does each sampler give the rows that it promises, as often as it promises?

Statistical tests are at a significance of about one in a thousand, on fixed seeds.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from annbatch.errors import InputError
from annbatch.order.row_selection import Runs
from annbatch.order.schedule import Schedule, Settings
from annbatch.order.state import Position
from annbatch.samplers import (
    ClassBalanced,
    Classes,
    Grouped,
    MatchedPairs,
    Sequential,
    Shuffled,
    Stratified,
    Weighted,
)
from annbatch.samplers.weighted import quantized
from annbatch.testing.epochs import epoch_batches, row_counts
from orders import classes_of, codes_of, schedules


def schedule_of(
    sampler, n, *, batch_size=10, chunk_size=4, nchunks=8, seed=0, drop_last=False, rows=None, classes=None
):
    asked = Settings(sampler, batch_size, chunk_size, nchunks, seed, drop_last)
    classes = classes_of(sampler.columns, n) if classes is None else classes
    return Schedule(asked, (n // 2, n - n // 2), classes, rows, {})


@given(schedules(("sequential",)))
def test_sequential_is_in_the_order_of_the_stores(schedule):
    rows = [row for batch in epoch_batches(schedule, 3)[0] for row in batch]
    assert rows == sorted(rows)


@given(schedules(), st.integers(0, 3))
def test_nothing_outside_the_subset_comes(schedule, epoch):
    if schedule._table.rows is not None:
        allowed = set(schedule._table.rows.find(np.arange(schedule.n_rows)).tolist())
        assert set(row_counts(epoch_batches(schedule, epoch))) <= allowed


# --- weighted ---------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([0.0, 1e-3, 0.5, 1.0, 3.0, 100.0]), min_size=1, max_size=40).filter(any),
    st.integers(1, 200),
    st.integers(0, 2**32),
    st.integers(1, 7),
)
def test_counts_are_expected_counts_rounded_up_or_down(weights, n_draws, seed, chunk_size):
    schedule = schedule_of(
        Weighted(np.array(weights), n_rows=n_draws), len(weights), seed=seed, chunk_size=chunk_size, batch_size=3
    )
    counts = row_counts(epoch_batches(schedule, 0))
    assert sum(counts.values()) == n_draws
    whole = [int(w) for w in quantized(np.array(weights), len(weights))]
    for row, weight in enumerate(whole):
        low, rest = divmod(n_draws * weight, sum(whole))
        assert counts[row] in ({low} if not rest else {low, low + 1})


@given(
    st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=2, max_size=40).filter(
        lambda w: sum(v > 1 for v in w) >= 2
    ),
    st.integers(0, 2**32),
    st.data(),
)
def test_without_replacement_no_row_comes_twice(weights, seed, data):
    n_positive = int((quantized(np.array(weights), len(weights)) > 0).sum())
    n_draws = data.draw(st.integers(1, n_positive))
    sampler = Weighted(weights, n_rows=n_draws, replace=False)
    counts = row_counts(epoch_batches(schedule_of(sampler, len(weights), seed=seed), 0))
    assert set(counts.values()) == {1}
    assert len(counts) == n_draws


@pytest.mark.parametrize("replace", [True, False])
def test_weighted_rows_come_with_the_stated_probability(replace):
    """Over 4,000 epochs, each row's count against its expectation, by a normal test on the sum of squared errors."""
    weights = np.array([0.0, 1.0, 1.0, 2.0, 4.0, 9.0, 0.25, 3.0])
    n_draws, n_epochs = 3, 4000
    schedule = schedule_of(Weighted(weights, n_rows=n_draws, replace=replace), 8, chunk_size=2)
    counts = np.zeros(8)
    for epoch in range(n_epochs):
        for row, n in row_counts(epoch_batches(schedule, epoch)).items():
            counts[row] += n
    expected = n_draws * weights / weights.sum()
    if not replace:
        expected = _inclusion(weights, n_draws)
    # A count is its expectation rounded up or down, so its variance is that of one coin.
    share = expected - np.floor(expected)
    deviation = np.sqrt(n_epochs * np.maximum(share * (1 - share), 1e-6))
    assert (np.abs(counts - n_epochs * expected) < 4.2 * deviation + 1e-3).all()


def _inclusion(weights, n):
    """min(w, c) n / sum(min(w, c)) with the largest c that keeps it within 1, by bisection."""
    low, high = 0.0, float(weights.max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * n <= np.minimum(weights, middle).sum() else (low, middle)
    capped = np.minimum(weights, low)
    return n * capped / capped.sum()


def test_copies_of_a_row_are_read_together():
    weights = np.ones(400)
    weights[7] = 50
    window = schedule_of(Weighted(weights, n_rows=400), 400, chunk_size=16, nchunks=25, batch_size=20)
    rows = window.segment(Position(), 1)[0].window(0, 0).rows
    assert (rows == 7).sum() >= 400 * 50 // 449


def test_weights_are_of_the_rows_of_the_stores_also_in_a_subset():
    weights = np.zeros(20)
    weights[[3, 11]] = 1, 3
    rows = Runs.of(np.arange(2, 15), 20)
    counts = row_counts(epoch_batches(schedule_of(Weighted(weights, n_rows=40), 20, rows=rows), 0))
    assert counts == {3: 10, 11: 30}


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Weighted(np.ones(9)), "one value for each of the 10 rows, got 9"),
        (Weighted(np.full(10, -1.0)), "finite and >= 0, got -1.0"),
        (Weighted(np.full(10, np.nan)), "finite and >= 0, got nan"),
        (Weighted(np.zeros(10)), "must not all be zero"),
        (Weighted(np.ones((10, 1))), "one axis, got 2"),
        (Weighted(np.ones(10), n_rows=0), r"n_rows must be in \[1, \d+\), got 0"),
        (Weighted(np.ones(10), replace=False), "n_rows must be a number of rows"),
        (Weighted(np.arange(10) % 2, n_rows=6, replace=False), "at most 5, the rows of positive weight, got 6"),
        (ClassBalanced("kind", {"nope": 1.0}), "must have the category 'nope'"),
        (ClassBalanced("kind", {"a": 1.0, "b": -1.0}), "finite and >= 0"),
        (Stratified("kind", {"a": 3, "b": 3}), "sum to batch_size=10, got 6"),
        (Stratified("kind", {"a": 5.5, "b": 4.5}), r"quotas\['a'\] must be an integer, got 5.5"),
        (Stratified("kind", {"a": 10}, n_batches=0), "n_batches must be >= 1, got 0"),
        (MatchedPairs("kind", "nope"), "must have the category 'nope'"),
        (MatchedPairs("kind", "b", "plate"), "must be a sequence of names"),
    ],
)
def test_bad_arguments_are_refused(sampler, message):
    classes = classes_of(("kind", "plate"), 10)
    with pytest.raises((InputError, TypeError, ValueError), match=message):
        schedule_of(sampler, 10, classes=classes)


def test_classes_without_rows_are_refused():
    empty = {"kind": Classes("kind", np.zeros(10, np.int8), pd.Index(["a", "b"]))}
    for sampler in (ClassBalanced("kind", {"b": 1.0}), Stratified("kind", {"b": 10})):
        with pytest.raises(InputError, match=r"obs\['kind'\] has no row of 'b'"):
            schedule_of(sampler, 10, classes=empty)
    missing = {"kind": Classes("kind", np.full(10, -1, np.int8), pd.Index(["a"]))}
    for sampler in (ClassBalanced("kind"), Grouped("kind")):
        with pytest.raises(InputError, match="must have a class"):
            schedule_of(sampler, 10, classes=missing)


# --- classes ----------------------------------------------------------------------------------------------------------


def test_balanced_classes_come_equally_often():
    """Shares of an epoch are exact up to rounding in each row; over epochs the mean share is the target."""
    n = 500
    shares = {"a": 1.0, "b": 1.0, "rare": 2.0}
    schedule = schedule_of(ClassBalanced("kind", shares, n_rows=400), n)
    codes = codes_of("kind", n)
    counts = np.zeros(5)
    for epoch in range(50):
        for row, times in row_counts(epoch_batches(schedule, epoch)).items():
            counts[codes[row]] += times
    assert counts[2] == counts[-1] == 0
    np.testing.assert_allclose(counts[[0, 1, 3]] / counts.sum(), [0.25, 0.25, 0.5], atol=0.005)


@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 9), st.booleans())
def test_quotas_hold_in_every_batch_and_rows_come_equally_often(count, epoch, chunk_size, subset):
    quotas = {"c": 2, "rare": 1, "a": 4}
    rows = Runs.of(np.arange(20, 190), 200) if subset else None
    schedule = schedule_of(
        Stratified("kind", quotas, n_batches=23), 200, batch_size=7, chunk_size=chunk_size, rows=rows
    )
    codes = codes_of("kind", 200)
    consumers = epoch_batches(schedule, epoch, count)
    for batches in consumers:
        for batch in batches:
            assert np.bincount(codes[batch], minlength=4).tolist() == [4, 0, 2, 1]
    counts = row_counts(consumers)
    for code in (0, 2, 3):
        inside = np.arange(200) if rows is None else rows.find(np.arange(len(rows)))
        of_class = [counts[row] for row in inside[codes[inside] == code].tolist()]
        assert max(of_class) - min(of_class) <= 1


def test_places_in_a_stratified_batch_say_nothing_about_the_class():
    """Chi-squared over (class, place in the batch): 6 classes of one row each, 25 degrees of freedom."""
    codes = np.arange(600) % 6
    classes = {"k": Classes("k", codes, pd.Index(list("abcdef")))}
    schedule = schedule_of(
        Stratified("k", dict.fromkeys("abcdef", 1), n_batches=3000), 600, batch_size=6, classes=classes
    )
    batches = np.array(epoch_batches(schedule, 0)[0])
    table = np.array([[(codes[batches[:, place]] == code).sum() for place in range(6)] for code in range(6)])
    assert stats.chi2.sf(((table - 500) ** 2 / 500).sum(), 25) > 0.001


@given(schedules(("grouped",)), st.integers(0, 3), st.integers(1, 4))
def test_grouped_batches_are_of_one_class_and_every_row_comes_once(schedule, epoch, count):
    codes = codes_of("kind", schedule._table.n_stored)
    consumers = epoch_batches(schedule, epoch, count)
    for batches in consumers:
        for batch in batches:
            assert len(set(codes[batch].tolist())) <= 1
    counts = row_counts(consumers)
    assert set(counts.values()) <= {1}
    if not schedule._settings.drop_last:
        inside = range(schedule._table.n_stored)
        if schedule._table.rows is not None:
            inside = schedule._table.rows.find(np.arange(schedule.n_rows)).tolist()
        assert set(counts) == {row for row in inside if codes[row] >= 0}


def test_grouped_consumers_get_rows_rather_than_empty_batches():
    schedule = schedule_of(Grouped("kind"), 200, batch_size=40)
    for count in (2, 3, 4):
        sizes = [len(batch) for batches in epoch_batches(schedule, 1, count) for batch in batches]
        assert min(sizes) > 0


@pytest.mark.parametrize("replace", [True, False])
def test_groups_come_with_their_weights(replace):
    """Of each class the expected number of batches, rounded up or down, and that number on average."""
    weights = {"a": 1.0, "b": 2.5, "rare": 2.0}
    size, n_rows, n_epochs = 7, 150 * 7 + 3, 400
    sampler = Grouped("kind", weights, n_rows=n_rows, replace=replace)
    schedule = schedule_of(sampler, 4000, batch_size=size)
    codes, shares = codes_of("kind", 4000), np.array([1.0, 2.5, 0, 2.0])
    # No class is asked for more batches than it has.
    assert (150 * shares / shares.sum() < np.bincount(codes[codes >= 0]) // size).all()
    expected = 150 * shares / shares.sum()
    for epoch in range(3):
        batches = epoch_batches(schedule, epoch)[0]
        assert [len(batch) for batch in batches] == [size] * 150
        of_batch = codes[np.array(batches)]
        assert (of_batch == of_batch[:, :1]).all()
        assert np.array_equal(of_batch[:, 0], schedule._order(epoch).codes)
        if not replace:
            assert max(row_counts([batches]).values()) == 1
    counts = np.array([np.bincount(schedule._order(epoch).codes, minlength=4) for epoch in range(n_epochs)])
    assert (np.abs(counts - expected) < 1).all()
    rest = expected - np.floor(expected)
    error = np.sqrt(np.maximum(rest * (1 - rest), 1e-12) / n_epochs)
    assert (np.abs(counts.mean(axis=0) - expected) < 4 * error + 1e-9).all()


def test_groups_without_replacement_have_no_more_than_there_is():
    """Weights above what a class has are cut: it comes in full, and the others share what is left."""
    sampler = Grouped("kind", {"a": 1.0, "b": 1.0, "rare": 1000.0}, n_rows=300, replace=False)
    schedule = schedule_of(sampler, 1000, batch_size=10)
    codes = codes_of("kind", 1000)
    counts = [np.bincount(codes[np.array(epoch_batches(schedule, e)[0])[:, 0]], minlength=4) for e in range(20)]
    assert {tuple(count) for count in counts} == {(10, 10, 0, 10)}


def test_groups_drawn_by_chance_begin_again():
    schedule = schedule_of(Grouped("kind", {"rare": 1.0}, n_rows=100), 100, batch_size=25)
    batches = epoch_batches(schedule, 0)[0]
    counts = row_counts([batches])
    assert set(counts) == set(np.flatnonzero(codes_of("kind", 100) == 3))
    assert set(counts.values()) == {10}
    # Consumers get full batches in the last round, too.
    assert [len(batch) for own in epoch_batches(schedule, 0, 3) for batch in own] == [25] * 6


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (Grouped("kind", n_rows=10), "n_rows must be None without weights, got 10"),
        (Grouped("kind", {"a": 1}, replace=False), "n_rows must be a number of rows if replace is False, got None"),
        (Grouped("kind", {"a": 1}, n_rows=9), "n_rows must be at least batch_size=10, got 9"),
        (Grouped("kind", {"nope": 1}), "must have the category 'nope'"),
        (Grouped("kind", {"a": -1.0, "b": 1}), "weights must be finite and >= 0"),
        (Grouped("kind", {"a": 0.0}, n_rows=10), "weights must not all be zero"),
        (Grouped("kind", {"rare": 1, "b": 1}, 10, False), r"batch_size=10 rows, got 5 of 'rare' in obs\['kind'\]"),
        (Grouped("kind", {"b": 1}, 30, False), "n_rows must be at most 20, the rows of full batches"),
        (Grouped([]), "by must be the name of an obs column, or a list of distinct names"),
        (Grouped(["kind", "kind"]), "by must be the name of an obs column, or a list of distinct names"),
    ],
)
def test_bad_groups_are_refused(sampler, message):
    with pytest.raises(InputError, match=message):
        schedule_of(sampler, 50)


# --- several columns ----------------------------------------------------------------------------------------------


def test_several_columns_are_one_class_of_tuples():
    """Each sampler by two columns gives what it gives by one column of their pairs."""
    n, both = 240, ["kind", "plate"]
    kinds, plates = (classes_of([name], n)[name] for name in both)
    pairs = [
        None if kind < 0 else (kinds.categories[kind], plates.categories[plate])
        for kind, plate in zip(kinds.codes, plates.codes, strict=True)
    ]
    categories = [(kind, plate) for kind in kinds.categories for plate in plates.categories if (kind, plate) in pairs]
    codes = np.array([-1 if pair is None else categories.index(pair) for pair in pairs], np.int8)
    one = {"pair": Classes("pair", codes, pd.Index(categories, tupleize_cols=False))}
    two = {"kind": kinds, "plate": plates}
    quotas = {("a", "p0"): 3, ("rare", "p1"): 7}
    for make in (
        Grouped,
        ClassBalanced,
        lambda by: Stratified(by, quotas),
        lambda by: ClassBalanced(by, {("b", "p1"): 2.0, ("c", "p0"): 1.0}),
        lambda by: MatchedPairs(by, ("b", "p0")),
        lambda by: Grouped(by, {("b", "p1"): 2.0, ("c", "p0"): 1.0}),
    ):
        rows = Runs.of(np.arange(n) % 7 != 2, n)
        found = schedule_of(make(both), n, classes=two, rows=rows)
        expected = schedule_of(make("pair"), n, classes=one, rows=rows)
        assert epoch_batches(found, 3) == epoch_batches(expected, 3)
        assert found.fingerprint["sampler"]["by"] == both
    with pytest.raises(InputError, match=r"must have the category 'b', got only \[\('a', 'p0'\)"):
        schedule_of(ClassBalanced(both, {"b": 1.0}), n, classes=two)


# --- pairs ------------------------------------------------------------------------------------------------------------


@given(schedules(("pairs",)), st.integers(0, 3), st.integers(1, 3))
def test_pairs_match(schedule, epoch, count):
    n = schedule._table.n_stored
    kinds, plates = codes_of("kind", n), codes_of("plate", n)
    consumers = epoch_batches(schedule, epoch, count)
    perturbed, controls = [], []
    for batches in consumers:
        for batch in batches:
            half = len(batch) // 2
            assert len(batch) == 2 * half
            left, right = np.array(batch[:half], int), np.array(batch[half:], int)
            assert (kinds[right] == 1).all()
            assert (kinds[left] != 1).all()
            assert (kinds[left] >= 0).all()
            np.testing.assert_array_equal(plates[left], plates[right])
            perturbed += left.tolist()
            controls += right.tolist()
    assert len(set(perturbed)) == len(perturbed)
    if not schedule._settings.drop_last:
        inside = np.arange(n)
        if schedule._table.rows is not None:
            inside = schedule._table.rows.find(np.arange(schedule.n_rows))
        assert set(perturbed) == set(inside[(kinds[inside] >= 0) & (kinds[inside] != 1)].tolist())
        for plate in (0, 1):
            pool = inside[(kinds[inside] == 1) & (plates[inside] == plate)]
            used = [controls.count(row) for row in pool.tolist()]
            assert max(used) - min(used) <= 1


def test_partners_differ_between_epochs():
    schedule = schedule_of(MatchedPairs("kind", "b", ["plate"]), 300)
    pairs = []
    for epoch in range(2):
        found = {}
        for batch in epoch_batches(schedule, epoch)[0]:
            half = len(batch) // 2
            found |= dict(zip(batch[:half], batch[half:], strict=True))
        pairs.append(found)
    assert pairs[0].keys() == pairs[1].keys()
    assert sum(pairs[0][row] == pairs[1][row] for row in pairs[0]) < len(pairs[0]) / 4


def test_a_context_without_controls_is_named():
    codes = codes_of("kind", 100)
    plates = np.where(codes == 1, 0, np.arange(100) % 2)
    classes = {
        "kind": Classes("kind", codes, pd.Index(["a", "b", "c", "rare"])),
        "plate": Classes("plate", plates, pd.Index(["p0", "p1"])),
    }
    with pytest.raises(InputError, match=r"plate='p1' has none \(1 contexts have none\)"):
        schedule_of(MatchedPairs("kind", "b", ["plate"]), 100, classes=classes)
    with pytest.raises(InputError, match="batch_size must be even for pairs, got 9"):
        schedule_of(MatchedPairs("kind", "b"), 100, batch_size=9, classes=classes)


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_shuffled_rows_are_equally_often_in_each_batch():
    """With single-row blocks: chi-squared over (row, batch), 40 rows, 4 batches, 117 degrees of freedom."""
    schedule = schedule_of(Shuffled(), 40, batch_size=10, chunk_size=1, nchunks=20)
    table = np.zeros((40, 4))
    n_epochs = 3000
    for epoch in range(n_epochs):
        for b, batch in enumerate(epoch_batches(schedule, epoch)[0]):
            table[batch, b] += 1
    expected = n_epochs / 4
    assert stats.chi2.sf(((table - expected) ** 2 / expected).sum(), 117) > 0.001


def test_a_sampler_of_ones_own_is_used():
    class Reversed:
        columns = ()

        def bind(self, table):
            inner = Sequential().bind(table)

            def order(epoch):
                found = inner(epoch)
                return type(found)(found.stream, found.batch_items, lambda rows: table.n_rows - 1 - rows, mixed=False)

            return order

        def describe(self):
            return {"sampler": "Reversed"}

    rows = [row for batch in epoch_batches(schedule_of(Reversed(), 33), 0)[0] for row in batch]
    assert rows == list(range(33))[::-1]
