"""Does every consumer get what it should, and is nothing lost when the number of consumers changes?"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from annbatch.errors import InputError
from annbatch.order.consumers import Partition, even_cuts
from annbatch.order.schedule import Schedule, Settings
from annbatch.order.state import Position
from annbatch.samplers import Shuffled
from annbatch.testing.epochs import batches_of, epoch_batches, row_counts
from orders import NAMES, batches_of_turns, classes_of, sampler_of, schedules

ROWS_ONCE = ("shuffled", "sequential")


def settings_of(schedule: Schedule) -> Settings:
    return schedule._settings


@given(schedules(ROWS_ONCE), st.integers(0, 5), st.integers(1, 5))
def test_every_row_comes_once_and_all_consumers_get_equally_many_batches(schedule, epoch, count):
    consumers = epoch_batches(schedule, epoch, count)
    assert {len(batches) for batches in consumers} == {schedule.n_batches(Partition(0, count))}
    counts = row_counts(consumers)
    assert set(counts.values()) <= {1}
    sizes = [len(batch) for batches in consumers for batch in batches]
    asked = settings_of(schedule)
    assert max(sizes, default=0) <= asked.batch_size
    if asked.drop_last:
        least = asked.batch_size if asked.drop_last is True else asked.drop_last
        assert min(sizes, default=least) >= least
        # Only what does not suffice for one more batch on every consumer is left out.
        left_out = schedule.n_rows - len(counts)
        assert left_out < count * least
        assert left_out in (0, schedule.n_rows % (count * asked.batch_size))
    else:
        assert len(counts) == schedule.n_rows


@given(schedules(), st.integers(0, 3), st.integers(1, 5))
def test_all_samplers_give_all_consumers_equally_many_batches(schedule, epoch, count):
    consumers = epoch_batches(schedule, epoch, count)
    assert {len(batches) for batches in consumers} == {schedule.n_batches(Partition(0, count))}
    sizes = [len(batch) for batches in consumers for batch in batches]
    asked = settings_of(schedule)
    assert max(sizes, default=0) <= asked.batch_size
    assert min(sizes, default=asked.batch_size) >= asked.least_rows


@given(schedules(ROWS_ONCE), st.integers(0, 5))
def test_alone_only_the_last_batch_is_short(schedule, epoch):
    sizes = [len(batch) for batch in epoch_batches(schedule, epoch)[0]]
    assert all(size == settings_of(schedule).batch_size for size in sizes[:-1])


@given(schedules(), st.integers(0, 5), st.integers(2, 4))
def test_full_windows_are_the_same_whoever_reads_them(schedule, epoch, count):
    alone, _ = schedule.segment(Position(epoch), 1)
    shared, _ = schedule.segment(Position(epoch), count)
    for number in range(shared._n_full):
        for index in range(count):
            expected = alone.window(number * count + index, 0)
            np.testing.assert_array_equal(shared.window(number, index).rows, expected.rows)
            np.testing.assert_array_equal(shared.window(number, index).cuts, expected.cuts)


@given(schedules(), st.integers(0, 3), st.integers(1, 4), st.data())
def test_the_same_consumers_go_on_bit_for_bit(schedule, epoch, count, data):
    whole = epoch_batches(schedule, epoch, count)
    n_done = data.draw(st.integers(0, len(whole[0])))
    rest = epoch_batches(schedule, epoch, count, [(count, n_done)])
    assert rest == [batches[n_done:] for batches in whole]


@given(schedules(), st.integers(0, 3), st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1)), min_size=1, max_size=4))
def test_other_consumers_get_exactly_what_nobody_has_had(schedule, epoch, history):
    """Interrupted at any moments, on any numbers of consumers: in the end each item came as often as it should."""
    seen: Counter[int] = Counter()
    position = Position(epoch)
    for count, share in [*history, (2, 1.0)]:
        segment, n_done = schedule.segment(position, count)
        n_batches = round((segment.n_batches - n_done) * share)
        for index in range(count):
            for batch in batches_of(segment, index, n_done, n_batches):
                seen.update(batch)
        position.begin(Partition(0, count))
        for _ in range(n_batches):
            position.advance()
    expected = row_counts(epoch_batches(schedule, epoch))
    if schedule.segment(Position(epoch), 1)[0].order.endless:
        # Rounds are filled up, with batches that come next, or left out.
        missing = expected - seen
        assert not missing or settings_of(schedule).drop_last
    elif settings_of(schedule).drop_last:
        assert all(seen[row] <= n for row, n in row_counts(all_items(schedule, epoch)).items())
    else:
        assert seen == expected


def all_items(schedule, epoch):
    """Every item of an epoch, also those that drop_last leaves out."""
    segment, _ = schedule.segment(Position(epoch), 1)
    items = segment.order.items(0, len(segment.order), segment.key).reshape(len(segment.order), -1)
    return [[[row for row in item if row >= 0] for item in items.tolist()]]


class Training(RuleBasedStateMachine):
    """A run on some number of ranks that is stopped, resumed and moved at will, beside one that never stops."""

    @initialize(schedule=schedules(ROWS_ONCE), count=st.integers(1, 4))
    def begin(self, schedule, count):
        self.schedule, self.count, self.epoch = schedule, count, 0
        self.position = Position()
        self.enter()
        self.seen: Counter[int] = Counter()
        self.moved = False

    def enter(self):
        self.segment, self.n_done = self.schedule.segment(self.position, self.count)
        self.position.begin(Partition(0, self.count))

    @precondition(lambda self: self.n_done < self.segment.n_batches)
    @rule(n=st.integers(1, 3))
    def train(self, n):
        for _ in range(min(n, self.segment.n_batches - self.n_done)):
            for index in range(self.count):
                self.seen.update(batches_of(self.segment, index, self.n_done, 1)[0])
            self.n_done += 1
            self.position.advance()

    @rule()
    def resume(self):
        self.position = Position(self.position.epoch, self.position.parts)
        self.enter()

    @rule(count=st.integers(1, 4))
    def move(self, count):
        self.moved |= count != self.count and self.n_done > 0
        self.count = count
        self.resume()

    @precondition(lambda self: self.n_done == self.segment.n_batches)
    @rule()
    def next_epoch(self):
        alone = row_counts(epoch_batches(self.schedule, self.position.epoch))
        if not settings_of(self.schedule).drop_last:
            assert self.seen == alone
        self.position.end()
        self.seen.clear()
        self.enter()

    @invariant()
    def no_row_comes_twice(self):
        assert max(self.seen.values(), default=0) <= 1


Training.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestTraining = Training.TestCase


@given(schedules(), st.integers(0, 3), st.integers(1, 3))
def test_a_position_beyond_the_end_is_refused(schedule, epoch, count):
    n_batches = schedule.segment(Position(epoch), count)[0].n_batches
    with pytest.raises(InputError, match="beyond the end"):
        schedule.segment(Position(epoch, ((count, n_batches + 1),)), count)


@pytest.mark.parametrize("name", NAMES)
def test_the_sequence_stays_what_it_is(name):
    """Golden: these hashes may only change together with `annbatch.order.consumers.VERSION`."""
    sampler = sampler_of(name, 5778, 64)
    asked = Settings(sampler, 64, 16, 8, 2**63 + 5, False)
    schedule = Schedule(asked, (5000, 1, 777), classes_of(sampler.columns, 5778), None, {})
    of_two = epoch_batches(schedule, 9, 2)
    moved = epoch_batches(schedule, 9, 3, [(2, 5), (1, 3)])
    numbers = [[-1, *batch] for consumers in (of_two, moved) for batches in consumers for batch in batches]
    found = hashlib.sha256(np.array([n for batch in numbers for n in batch], "<i8").tobytes()).hexdigest()
    assert found[:16] == GOLDEN[name]


GOLDEN = {
    "shuffled": "1d82e1a49fbde7ef",
    "sequential": "0fff2172aadf7850",
    "weighted": "5b30a76acc4e4ff9",
    "unreplaced": "5c7b090704c8d714",
    "balanced": "61f8e8698df70777",
    "stratified": "3f95c75efe6d4028",
    "grouped": "f6ce6c91ff4c4371",
    "drawn groups": "fb2d7ccae814ed9c",
    "groups once": "8e5ec3f985ebb4fd",
    "pairs": "809d83fe8dd09dc2",
}


@pytest.mark.parametrize("name", ["shuffled", "grouped"])
def test_dropped_rows_differ_between_epochs(name):
    sampler = sampler_of(name, 103, 10)
    schedule = Schedule(Settings(sampler, 10, 1, 4, 0, True), (103,), classes_of(sampler.columns, 103), None, {})
    dropped = [frozenset(range(103)) - set(row_counts(epoch_batches(schedule, epoch))) for epoch in range(20)]
    assert len(set(dropped)) > 10


@pytest.mark.parametrize(
    ("n_items", "n_batches", "batch_items", "expected"),
    [
        (10, 3, 4, [0, 4, 8, 10]),
        (8, 3, 4, [0, 4, 7, 8]),
        (4, 2, 4, [0, 3, 4]),
        (0, 1, 4, [0, 0]),
        (2, 2, 1, [0, 1, 2]),
        (0, 0, 3, [0]),
    ],
)
def test_even_cuts(n_items, n_batches, batch_items, expected):
    assert even_cuts(n_items, n_batches, batch_items).tolist() == expected


def test_a_partition_is_shown_as_it_is_written():
    for partition in (Partition(1, 3), Partition(0, 1, worker=2, n_workers=4)):
        assert eval(repr(partition)) == partition
    assert repr(Partition(0, 1)) == "Partition(0, 1)"


@given(schedules(), st.integers(0, 3), st.integers(1, 3), st.integers(0, 6), st.floats(0, 1), st.floats(0, 1))
def test_workers_share_out_what_a_consumer_gets(schedule, epoch, count, n_workers, share, share_of_worker):
    """The same batches for any number of workers, wherever a consumer stood when they began."""
    n_done = round(schedule.segment(Position(epoch), count)[0].n_batches * share)
    position = Position(epoch, ((count, n_done),))
    for index in range(count):
        segment, _ = schedule.segment(position, count)
        expected = batches_of(segment, index)[n_done:]
        found = []
        for worker in range(max(1, n_workers)):
            own = replace(position)
            own.begin(Partition(index, count, worker, n_workers))
            batches = batches_of_turns(schedule.turns(own, count), index)
            assert schedule.turns(own, count).n_batches == len(batches)
            # Wherever a worker is stopped, the rest of its batches is left.
            for n_had in {0, round(len(batches) * share_of_worker), len(batches)} if n_workers else ():
                rest = schedule.turns(replace(own, n_had=n_had), count)
                assert batches_of_turns(rest, index) == batches[n_had:]
                assert rest.at_end == (n_had == len(batches))
            found.append(batches)
        assert sorted(batch for batches in found for batch in batches) == sorted(expected)
        if n_workers < 2:
            assert found == [expected]
        if n_done == 0:
            whole = [schedule.n_batches(Partition(index, count, w, n_workers)) for w in range(max(1, n_workers))]
            assert whole == [len(batches) for batches in found]
            assert sum(whole) == schedule.n_batches(Partition(index, count))


def test_a_worker_beyond_its_end_is_refused():
    schedule = Schedule(Settings(Shuffled(), 4, 2, 4, 0, False), (40,), {}, None, {})
    assert schedule.turns(Position(0, ((1, 0),), worker=(1, 2), n_had=4), 1).at_end
    with pytest.raises(InputError, match="beyond the end of epoch 0: worker 1 of 2 gets 4 batches, not 5"):
        schedule.turns(Position(0, ((1, 0),), worker=(1, 2), n_had=5), 1)


def test_an_epoch_of_many_random_rows_is_planned_window_by_window():
    """With single-row blocks nothing is held for all rows: a window of 100 million rows comes from a few numbers."""
    schedule = Schedule(Settings(Shuffled(), 4096, 1, 4096, 0, False), (10**8 - 1,), {}, None, {})
    window = schedule.segment(Position(), 1)[0].window(20_000, 0)
    assert len(np.unique(window.rows)) == 4096
    assert 0 <= window.rows.min() < window.rows.max() < 10**8
