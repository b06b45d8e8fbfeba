"""Does each worker get the windows that are its turn, wherever its consumer stood? All cases of small segments."""

from __future__ import annotations

from itertools import product

import pytest

from annbatch.order.consumers import Segment
from annbatch.order.permutation import Key, Purpose
from annbatch.order.turns import Turns
from annbatch.testing.epochs import batches_of
from orders import Numbers, batches_of_turns

KEY = Key(0, 0, Purpose.MIX)


@pytest.mark.parametrize("n_items", [0, 3, 13])
def test_each_worker_gets_every_n_th_window(n_items: int):
    for size, n_workers in product((1, 2, 3), (1, 2, 3)):
        segment = Segment(Numbers(n_items, batch_items=2), KEY, size, 0, 1)
        whole = batches_of(segment, 0)
        for n_done, worker in product(range(len(whole) + 1), range(n_workers)):
            numbers = [number for number in range(n_done, len(whole)) if number // size % n_workers == worker]
            own = [whole[number] for number in numbers]
            for n_had in range(len(own) + 1):
                turns = Turns(segment, n_done, worker, n_workers, n_had)
                assert turns.n_batches == len(own)
                assert turns.at_end == (n_had == len(own))
                assert turns.n_windows == len({number // size for number in numbers[n_had:]})
                assert batches_of_turns(turns, 0) == own[n_had:]
            message = f"^worker {worker} of {n_workers} gets {len(own)} batches, not {len(own) + 1}$"
            with pytest.raises(ValueError, match=message):
                Turns(segment, n_done, worker, n_workers, len(own) + 1)


def test_without_workers_all_windows_are_read():
    segment = Segment(Numbers(13, batch_items=2), KEY, 2, 0, 2)
    for index in range(2):
        assert batches_of_turns(Turns(segment, 0), index) == batches_of(segment, index)
    assert Turns(segment, 0).n_batches == segment.n_batches
    with pytest.raises(ValueError, match="^worker 0 of 1 gets 4 batches, not 5$"):
        Turns(segment, 0, n_had=5)
