"""What does a sampler get to see, and what becomes of its order?"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from annbatch.errors import InputError
from annbatch.order.consumers import Order, Partition
from annbatch.order.permutation import Key, Purpose
from annbatch.order.row_selection import Runs, digest
from annbatch.order.row_table import Classes, Table
from annbatch.order.schedule import Schedule, Settings
from annbatch.order.state import Position
from annbatch.testing.epochs import epoch_batches
from orders import Numbers

KIND = Classes("kind", np.array([0, 1, -1, 1, 0, 1, 0, 0], np.int8), pd.Index(["a", "b"]))


class Fixed:
    """A sampler that keeps the tables it was bound to."""

    columns = ("kind",)

    def __init__(self, make: Callable[[], Order]) -> None:
        self.make, self.tables = make, list[Table]()

    def bind(self, table: Table) -> Callable[[int], Order]:
        self.tables.append(table)
        return lambda epoch: self.make()

    def describe(self) -> dict[str, Any]:
        return {"sampler": "Fixed"}


def items_of_two() -> Order:
    return Numbers(8, batch_items=2)


def schedule_of(
    make: Callable[[], Order] = items_of_two, rows: Runs | None = None, drop_last: bool | int = 3
) -> Schedule:
    return Schedule(Settings(Fixed(make), 4, 3, 3, 11, drop_last), (5, 3), {"kind": KIND}, rows, {"n_obs": 8})


@pytest.mark.parametrize(("drop_last", "least"), [(True, 4), (False, 0), (3, 3)])
def test_least_rows(drop_last: bool | int, least: int):
    assert Settings(Fixed(items_of_two), 4, 3, 3, 0, drop_last).least_rows == least


@pytest.mark.parametrize(("batch_size", "n"), [(4, 3), (3, 3), (10, 1), (9, 1), (8, 2)])
def test_windows_are_whole_batches(batch_size: int, n: int):
    assert Settings(Fixed(items_of_two), batch_size, 3, 3, 0, False).batches_per_window == n


def test_a_sampler_is_bound_to_all_rows():
    found = schedule_of()
    (table,) = found._settings.sampler.tables
    assert (table.store_rows, table.n_stored, table.rows) == ((5, 3), 8, None)
    assert (table.batch_size, table.chunk_size, table.seed, table.least_rows) == (4, 3, 11, 3)
    assert table.classes["kind"] is KIND
    assert found.n_rows == 8
    assert found.fingerprint == {
        "n_obs": 8,
        "rows": None,
        "batch_size": 4,
        "chunk_size": 3,
        "preload_nchunks": 3,
        "seed": 11,
        "drop_last": 3,
        "sampler": {"sampler": "Fixed"},
        "classes": {"kind": digest(KIND.codes)},
    }


def test_a_sampler_is_bound_to_a_subset():
    rows = Runs.of([1, 2, 6], 8)
    found = schedule_of(rows=rows)
    (table,) = found._settings.sampler.tables
    assert (table.store_rows, table.n_stored, table.rows) == ((2, 1), 8, rows)
    assert table.classes["kind"].codes.tolist() == [1, -1, 0]
    assert found.n_rows == 3
    assert found.fingerprint["rows"] == rows.digest()


def test_items_of_a_subset_become_rows_of_the_stores():
    rows = Runs.of([3, 5, 6, *range(10, 50)], 50)
    inner = Numbers(3, widths=[2, 1, 3], batch_items=5, endless=True, divisible=True)
    asked = Settings(Fixed(lambda: inner), 4, 3, 3, 11, False)
    order = Schedule(asked, (20, 30), {}, rows, {}).segment(Position(), 1)[0].order
    assert len(order) == 3
    assert (order.batch_items, order.endless, order.divisible) == (5, True, True)
    key = Key(0, 0, Purpose.MIX, 3)
    assert order.items(0, 3, key).tolist() == [[3, 5, -1], [17, -1, -1], [27, 28, 29]]
    assert inner.asked == [(0, 3, key)]


@pytest.mark.parametrize(
    ("batch_items", "drop_last", "least"), [(4, 3, 3), (2, 3, 2), (1, 2, 1), (2, False, 0), (2, True, 2)]
)
def test_the_least_items_of_a_batch(batch_items: int, drop_last: bool | int, least: int):
    found = schedule_of(lambda: Numbers(8, batch_items=batch_items), drop_last=drop_last)
    segment, n_done = found.segment(Position(7, ((2, 1),)), 2)
    assert (segment.least_items, segment.count, n_done) == (least, 2, 1)
    assert segment.batches_per_window == 3
    assert segment.key == Key(11, 7, Purpose.MIX)


def test_a_position_beyond_the_end():
    with pytest.raises(InputError, match="the state is beyond the end of epoch 7: each of 1 consumers gets 4 batches"):
        schedule_of().segment(Position(7, ((1, 5),)), 1)
    with pytest.raises(InputError, match="the state is beyond the end of epoch 7: worker 1 of 2 gets 1 batches, not 2"):
        schedule_of().turns(Position(7, worker=(1, 2), n_had=2), 1)


def test_turns_are_those_of_the_worker_whose_position_it_is():
    found = schedule_of()
    alone = found.turns(Position(), 2)
    assert (alone.worker, alone.n_workers, alone.n_done, alone.n_had) == (0, 1, 0, 0)
    own = found.turns(Position(0, ((1, 1),), worker=(1, 2), n_had=1), 1)
    assert (own.worker, own.n_workers, own.n_done, own.n_had) == (1, 2, 1, 1)
    assert own.segment.count == 1


def test_numbers_of_batches():
    found = schedule_of()
    for _ in range(2):
        assert found.n_batches(Partition(0, 1)) == 4
        assert found.n_batches(Partition(1, 2)) == 2
        assert [found.n_batches(Partition(0, 1, worker, 2)) for worker in range(2)] == [3, 1]


def test_a_schedule_is_pickled_without_its_order():
    found = schedule_of()
    again = pickle.loads(pickle.dumps(found))
    assert epoch_batches(again, 0) == epoch_batches(found, 0)
    assert again.fingerprint == found.fingerprint
