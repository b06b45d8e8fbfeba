"""Does every row come when it should, and once?"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annbatch import permutation as permutation_module
from annbatch.permutation import Feistel, Key, Purpose, Sorted, permutation, shuffled
from annbatch.samplers import BlockSampler, Partition, even_cuts, expand

samplers = st.builds(
    BlockSampler,
    store_rows=st.lists(st.integers(0, 40), min_size=1, max_size=6).map(tuple).filter(any),
    batch_size=st.integers(1, 12),
    chunk_size=st.integers(1, 12),
    preload_nchunks=st.integers(1, 5),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    drop_last=st.booleans(),
)


def windows(sampler: BlockSampler, epoch: int, partition: Partition):
    stream = sampler.stream(epoch)
    return [sampler.window(stream, epoch, k, partition) for k in range(sampler.n_windows(partition))]


def batches(sampler: BlockSampler, epoch: int, partition: Partition = Partition(0, 1)) -> list[list[int]]:
    return [
        window.rows[start:stop].tolist()
        for window in windows(sampler, epoch, partition)
        for start, stop in zip(window.cuts[:-1], window.cuts[1:], strict=True)
    ]


@given(samplers, st.integers(0, 5), st.integers(1, 5))
def test_every_row_comes_once_and_all_consumers_get_equally_many_batches(sampler, epoch, count):
    of_consumers = [batches(sampler, epoch, Partition(i, count)) for i in range(count)]
    assert {len(b) for b in of_consumers} == {sampler.n_batches(Partition(0, count))}
    rows = [row for consumer in of_consumers for batch in consumer for row in batch]
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(range(sampler.n_obs))
    sizes = [len(batch) for consumer in of_consumers for batch in consumer]
    assert max(sizes, default=0) <= sampler.batch_size
    if sampler.drop_last:
        assert set(sizes) <= {sampler.batch_size}
        assert sampler.n_obs - len(rows) < count * sampler.batch_size
    else:
        assert len(rows) == sampler.n_obs


@given(samplers, st.integers(0, 5))
def test_alone_only_the_last_batch_is_short(sampler, epoch):
    sizes = [len(batch) for batch in batches(sampler, epoch)]
    assert all(size == sampler.batch_size for size in sizes[:-1])


@given(samplers, st.integers(0, 5), st.integers(2, 4))
def test_full_windows_are_the_same_whoever_reads_them(sampler, epoch, count):
    alone = windows(sampler, epoch, Partition(0, 1))
    n_full_rounds = sampler.n_obs // (sampler.window_rows * count)
    for i in range(count):
        shared = windows(sampler, epoch, Partition(i, count))
        for number in range(n_full_rounds):
            np.testing.assert_array_equal(shared[number].rows, alone[number * count + i].rows)


@given(samplers)
def test_unshuffled_is_sequential(sampler):
    if not sampler.shuffle:
        rows = [row for batch in batches(sampler, 3) for row in batch]
        assert rows == list(range(len(rows)))


@given(samplers, st.integers(0, 3), st.data())
def test_a_window_holds_blocks_of_neighbours(sampler, epoch, data):
    """The stream is made of whole blocks, each contiguous rows of one store."""
    stream = sampler.stream(epoch)
    rows = stream.rows(0, sampler.n_obs)
    edges = np.cumsum((0, *sampler.store_rows))
    in_store = rows - edges[np.searchsorted(edges, rows, side="right") - 1]
    begins = np.flatnonzero(in_store % sampler.chunk_size == 0)
    for begin, end in zip(begins, [*begins[1:], len(rows)], strict=True):
        assert (np.diff(rows[begin:end]) == 1).all()
    start = data.draw(st.integers(0, sampler.n_obs))
    stop = data.draw(st.integers(start, sampler.n_obs))
    np.testing.assert_array_equal(stream.rows(start, stop), rows[start:stop])


def test_epochs_and_seeds_differ():
    sampler = BlockSampler((500,), 10, 5, 4)
    other_seed = BlockSampler((500,), 10, 5, 4, seed=1)
    orders = {str(batches(sampler, 0)), str(batches(sampler, 1)), str(batches(other_seed, 0))}
    assert len(orders) == 3
    assert batches(sampler, 0) == batches(sampler, 0)


def test_dropped_rows_differ_between_epochs():
    sampler = BlockSampler((103,), 10, 1, 4, drop_last=True)
    dropped = [
        frozenset(range(103)) - {row for batch in batches(sampler, epoch) for row in batch} for epoch in range(20)
    ]
    assert all(len(rows) == 3 for rows in dropped)
    assert len(set(dropped)) > 10


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 100, 1000, 4097])
def test_feistel_is_a_bijection_and_knows_its_inverse(n):
    order = Feistel.make(n, Key(3, 4, Purpose.BLOCKS))
    positions = np.arange(n, dtype=np.int64)
    things = order.forward(positions)
    np.testing.assert_array_equal(np.sort(things), positions)
    np.testing.assert_array_equal(order.inverse(things), positions)


def test_sorted_knows_its_inverse():
    order = Sorted(shuffled(1000, Key(3, 4, Purpose.BLOCKS)))
    things = np.array([7, 999, 0, 500], np.int64)
    np.testing.assert_array_equal(order.forward(order.inverse(things)), things)


def test_epochs_are_the_same_rows_when_blocks_are_too_many_to_sort(monkeypatch):
    monkeypatch.setattr(permutation_module, "SORT_LIMIT", 10)
    sampler = BlockSampler((100, 3, 57), 8, 3, 4)
    assert isinstance(permutation(11, Key(0, 0, Purpose.BLOCKS)), Feistel)
    rows = [row for batch in batches(sampler, 0) for row in batch]
    assert sorted(rows) == list(range(160))
    assert rows != list(range(160))


@pytest.mark.parametrize(
    "order_of", [lambda key: shuffled(6, key), lambda key: Feistel.make(6, key).forward(np.arange(6))]
)
def test_each_thing_is_equally_often_at_each_place(order_of):
    """Chi-squared over (thing, place), 25 degrees of freedom: above 52.6 once in a thousand times."""
    n_draws = 6000
    counts = np.zeros((6, 6))
    for epoch in range(n_draws):
        counts[order_of(Key(11, epoch, Purpose.ROWS)), np.arange(6)] += 1
    expected = n_draws / 6
    assert ((counts - expected) ** 2 / expected).sum() < 52.6


def test_all_orders_of_four_things_are_equally_likely():
    """Chi-squared over the 24 permutations, 23 degrees of freedom: above 49.7 once in a thousand times."""
    n_draws = 12000
    counts: dict[bytes, int] = {}
    for epoch in range(n_draws):
        order = shuffled(4, Key(5, epoch, Purpose.ROWS)).tobytes()
        counts[order] = counts.get(order, 0) + 1
    expected = n_draws / 24
    assert len(counts) == 24
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 49.7


def test_the_sequence_stays_what_it_is():
    """Golden: these numbers may only change together with the version of the order."""
    assert shuffled(10, Key(0, 0, Purpose.BLOCKS)).tolist() == GOLDEN_SHUFFLE
    assert Feistel.make(10, Key(0, 0, Purpose.BLOCKS)).forward(np.arange(10)).tolist() == GOLDEN_FEISTEL
    rows = [row for batch in batches(BlockSampler((5000, 1, 777), 64, 16, 8, seed=2**63 + 5), 9) for row in batch]
    assert hashlib.sha256(np.array(rows, "<i8").tobytes()).hexdigest() == GOLDEN_EPOCH


GOLDEN_SHUFFLE = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
GOLDEN_FEISTEL = [4, 9, 3, 2, 1, 5, 6, 8, 0, 7]
GOLDEN_EPOCH = "f06b8c2a76d890555debdc4e3dcf2a2418fc7f8a3406e2e4a5f1bfbe749265eb"


@pytest.mark.parametrize(
    ("n_rows", "n_batches", "batch_size", "expected"),
    [
        (10, 3, 4, [0, 4, 8, 10]),
        (8, 3, 4, [0, 4, 7, 8]),
        (4, 2, 4, [0, 3, 4]),
        (0, 1, 4, [0, 0]),
        (2, 2, 1, [0, 1, 2]),
        (0, 0, 3, [0]),
    ],
)
def test_even_cuts(n_rows, n_batches, batch_size, expected):
    assert even_cuts(n_rows, n_batches, batch_size).tolist() == expected


def test_expand():
    assert expand(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]


@pytest.mark.parametrize(("index", "count"), [(0, 0), (-1, 2), (2, 2)])
def test_partition_refuses(index, count):
    with pytest.raises(ValueError, match="must be"):
        Partition(index, count)


def test_an_epoch_of_many_random_rows_is_planned_window_by_window():
    """With single-row blocks nothing is held for all rows: a window of 100 million rows comes from a few numbers."""
    sampler = BlockSampler((10**8 - 1,), 4096, 1, 4096)
    window = sampler.window(sampler.stream(0), 0, 20_000, Partition(0, 1))
    assert len(np.unique(window.rows)) == 4096
    assert 0 <= window.rows.min() < window.rows.max() < 10**8
