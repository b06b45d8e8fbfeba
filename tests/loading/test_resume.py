"""Does a run that was stopped go on as if it had not been?"""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from annbatch import InputError, Loader, Partition
from annbatch.order.consumers import Segment
from annbatch.samplers import ClassBalanced, Grouped, MatchedPairs, Sequential, Shuffled, Stratified, Weighted
from live_threads import background_threads
from stores import named_stores

N = 98
SAMPLERS = {
    "shuffled": lambda: Shuffled(),
    "sequential": lambda: Sequential(),
    "weighted": lambda: Weighted(np.arange(N) % 5, n_rows=150),
    "balanced": lambda: ClassBalanced("stage"),
    "stratified": lambda: Stratified("stage", {"early": 2, "mid": 1, "late": 5}),
    "grouped": lambda: Grouped("donor"),
    "drawn groups": lambda: Grouped(["donor", "stage"], {("donor1", "mid"): 3.0, ("donor2", "late"): 1.0}, n_rows=96),
    "pairs": lambda: MatchedPairs("stage", "early", ["doublet"]),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[ad.AnnData], sp.csr_matrix, pd.DataFrame]:
    return named_stores(tmp_path_factory.mktemp("stores"), "v3 sharded")


def loader(adatas: list[ad.AnnData], sampler: str = "shuffled", **options) -> Loader:
    asked = {"batch_size": 8, "chunk_size": 3, "preload_nchunks": 5, "threads": 1, "seed": 4} | options
    return Loader(sampler=SAMPLERS[sampler](), **asked).add_anndatas(adatas, labels=["stage"])


def taken(batch) -> tuple[bytes, bytes, bytes]:
    return batch.index.tobytes(), batch.data.data.tobytes(), batch.codes["stage"].tobytes()


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_the_next_batch_is_the_one_that_would_have_come(stores, sampler, prefetch):
    """At every batch of two epochs, through JSON, in a new loader."""
    adatas, x, _ = stores
    whole = loader(adatas, sampler, prefetch=prefetch)
    batches, states = [], []
    for _ in range(2):
        for batch in whole:
            np.testing.assert_array_equal(batch.data.to_scipy().toarray(), x[batch.index].toarray())
            batches.append(taken(batch))
            states.append(json.dumps(whole.state_dict()))
    n = len(whole)
    assert len(batches) == 2 * n
    # Windows are of two batches: every other place is within one, and both epochs' ends are among them.
    for i, state in list(enumerate(states))[:: 1 if prefetch == 0 else 3]:
        resumed = loader(adatas, sampler, prefetch=prefetch)
        resumed.load_state_dict(json.loads(state))
        assert resumed.state_dict() == json.loads(state)
        rest = [taken(batch) for batch in resumed]
        assert rest == batches[i + 1 : i + 1 + len(rest)]
        assert len(rest) == n - 1 - i % n
        if i % 4 == 0 and i < n:
            assert [taken(batch) for batch in resumed] == batches[n:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_other_ranks_go_on_with_what_nobody_has_had(stores, sampler):
    adatas, _, _ = stores

    def index_of(batches):
        return [row for batch in batches for row in batch.index.tolist()]

    alone = loader(adatas, sampler, chunk_size=2, preload_nchunks=4)
    expected = sorted(index_of(alone))
    seen = []
    states = []
    for rank in range(3):
        ds = loader(adatas, sampler, chunk_size=2, preload_nchunks=4, partition=Partition(rank, 3))
        iterator = iter(ds)
        seen += index_of(next(iterator) for _ in range(2))
        states.append(ds.state_dict())
        ds.close()
    assert states[0] == states[1] == states[2]
    for rank in range(2):
        ds = loader(adatas, sampler, chunk_size=2, preload_nchunks=4, partition=Partition(rank, 2))
        ds.load_state_dict(states[0])
        seen += index_of(ds)
        assert ds.state_dict()["epoch"] == 1
    if sampler == "stratified":
        # The last round is filled up with more batches of the same quotas.
        assert len(seen) >= len(expected)
    else:
        assert sorted(seen) == expected


class Run(RuleBasedStateMachine):
    """One loader that is stopped, resumed, restarted and set at will; the truth is a table of whole epochs."""

    adatas: list[ad.AnnData]
    truth: dict[int, list[bytes]]

    @initialize(sampler=st.sampled_from(sorted(SAMPLERS)), prefetch=st.integers(0, 2), drop_last=st.booleans())
    def begin(self, sampler, prefetch, drop_last):
        self.options = {"sampler": sampler, "prefetch": prefetch, "drop_last": drop_last}
        self.truth = {}
        self.ds = loader(self.adatas, **self.options)
        self.epoch, self.at, self.running, self.iterator = 0, 0, False, None
        self.unused = []

    def expected(self, epoch):
        if epoch not in self.truth:
            whole = loader(self.adatas, **self.options)
            whole.set_epoch(epoch)
            self.truth[epoch] = [batch.index.tobytes() for batch in whole]
        return self.truth[epoch]

    @rule(n=st.integers(1, 4))
    def take(self, n):
        if self.iterator is None:
            if self.running:
                self.epoch, self.at = self.epoch + 1, 0
            self.iterator, self.running = iter(self.ds), True
        for _ in range(n):
            batch = next(self.iterator, None)
            if batch is None:
                assert self.at == len(self.expected(self.epoch))
                self.epoch, self.at, self.running, self.iterator = self.epoch + 1, 0, False, None
                return
            assert batch.index.tobytes() == self.expected(self.epoch)[self.at]
            self.at += 1

    @rule()
    def save_and_load_elsewhere(self):
        state = json.loads(json.dumps(self.ds.state_dict()))
        self.ds.close()
        self.ds = loader(self.adatas, **self.options)
        self.ds.load_state_dict(state)
        self.iterator, self.running, self.unused = None, False, []

    @rule(keep=st.booleans())
    def ask_for_an_iterator_and_use_it_later_or_never(self, keep):
        before = self.ds.state_dict(), self.ds.next_epoch, self.ds.at_end
        iterator = iter(self.ds)
        if keep:
            self.unused.append(iterator)
        assert (self.ds.state_dict(), self.ds.next_epoch, self.ds.at_end) == before

    @precondition(lambda self: self.unused)
    @rule()
    def use_an_older_iterator(self):
        """It gives what a new one would give, and closes the one that was at work."""
        self.epoch, self.at = (self.epoch + 1, 0) if self.running else (self.epoch, self.at)
        left, self.iterator, self.running = self.iterator, self.unused.pop(), True
        self.take(1)
        if left is not None:
            with pytest.raises(RuntimeError, match="closed"):
                next(left)

    @precondition(lambda self: self.iterator is not None)
    @rule()
    def leave_early(self):
        self.iterator = None

    @rule(epoch=st.integers(0, 3))
    def set_epoch(self, epoch):
        self.ds.set_epoch(epoch)
        self.epoch, self.at, self.running, self.iterator = epoch, 0, False, None

    def teardown(self):
        if hasattr(self, "ds"):
            self.ds.close()


def test_any_history_gives_the_batches_of_an_uninterrupted_run(stores):
    machine = type("Run", (Run,), {"adatas": stores[0]})
    machine.TestCase.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
    machine.TestCase("runTest").runTest()


def test_where_an_iterator_leaves_a_loader(stores):
    ds = loader(stores[0])
    assert (ds.next_epoch, ds.state_dict()["epoch"], ds.state_dict()["parts"]) == (0, 0, [])
    iterator = iter(ds)
    next(iterator)
    assert (ds.next_epoch, ds.state_dict()["epoch"], ds.state_dict()["parts"]) == (1, 0, [[1, 1]])
    del iterator
    second = [batch.index for batch in ds]
    assert (ds.next_epoch, ds.state_dict()["epoch"], ds.state_dict()["parts"]) == (2, 2, [])
    ds.set_epoch(1)
    assert np.array_equal(next(iter(ds)).index, second[0])


def test_an_iterator_that_nobody_uses_leaves_no_trace(stores):
    ds = loader(stores[0], prefetch=2)
    whole = [batch.index.tolist() for batch in loader(stores[0])]
    unused = [iter(ds) for _ in range(3)]
    batches = iter(ds)
    first = next(batches).index.tolist()
    at_work = len(background_threads())
    unused += [iter(ds) for _ in range(3)]
    assert len(background_threads()) == at_work
    # The iterator at work goes on.
    assert [first, *(batch.index.tolist() for batch in batches)] == whole
    ds.close()
    del unused
    assert background_threads() == []
    assert (ds.next_epoch, ds.state_dict()["parts"]) == (1, [])


def test_a_look_at_one_batch_takes_nothing_from_training(stores):
    epochs = [[batch.index.tolist() for batch in ds] for ds in [loader(stores[0])] for _ in range(2)]
    ds = loader(stores[0])
    assert next(iter(ds)).index.tolist() == epochs[0][0]
    assert [batch.index.tolist() for batch in ds] == epochs[1]
    ds = loader(stores[0])
    next(iter(ds))
    ds.set_epoch(0)
    assert [batch.index.tolist() for batch in ds] == epochs[0]


def test_at_end_says_whether_anything_is_left(stores):
    ds = loader(stores[0])
    assert not ds.at_end
    for n, _ in enumerate(ds, 1):
        assert ds.at_end == (n == len(ds))
        resumed = loader(stores[0])
        resumed.load_state_dict(ds.state_dict())
        assert resumed.at_end == ds.at_end == (not list(resumed))
    assert not ds.at_end, "the next epoch is whole"


def test_what_was_read_ahead_does_not_count(stores):
    ds = loader(stores[0], prefetch=3)
    iterator = iter(ds)
    next(iterator)
    assert ds.state_dict()["parts"] == [[1, 1]]
    ds.close()
    assert ds.state_dict()["parts"] == [[1, 1]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 5}, "seed is 4 in the state and 5 here"),
        ({"batch_size": 16}, "batch_size is 8 in the state and 16 here"),
        ({"chunk_size": 4}, "chunk_size is 3 in the state and 4 here"),
        ({"preload_nchunks": 6}, "preload_nchunks is 5 in the state and 6 here"),
        ({"drop_last": True}, "drop_last is False in the state and True here"),
        ({"drop_last": 2}, "drop_last is False in the state and 2 here"),
        (
            {"sampler": "sequential"},
            "sampler is {'sampler': 'Shuffled'} in the state and {'sampler': 'Sequential'} here",
        ),
        ({"rows": np.arange(50)}, "rows is missing in the state and '"),
    ],
)
def test_a_state_of_other_settings_is_refused_by_name(stores, changed, message):
    state = loader(stores[0]).state_dict()
    with pytest.raises(InputError) as error:
        loader(stores[0], **changed).load_state_dict(state)
    assert message in str(error.value)
    assert str(error.value).count(" here") == 1


def test_a_state_of_other_data_is_refused(stores, tmp_path: Path):
    state = loader(stores[0]).state_dict()
    others, _, _ = named_stores(tmp_path, "v3 sharded", sizes=(37, 61))
    with pytest.raises(InputError, match=r"stores is '\w+' in the state and '\w+' here"):
        loader(others).load_state_dict(state)


def test_classes_that_changed_are_noticed(stores):
    """The order of a class sampler follows from the labels."""

    def with_stage(shift):
        x = stores[1]
        obs = pd.DataFrame({"stage": pd.Categorical.from_codes((np.arange(N) + shift) % 3, ["early", "mid", "late"])})
        obs.index = obs.index.astype(str)
        return [ad.AnnData(X=x, obs=obs)]

    state = loader(with_stage(0), "balanced").state_dict()
    loader(with_stage(0), "balanced").load_state_dict(state)
    with pytest.raises(InputError, match="classes is"):
        loader(with_stage(1), "balanced").load_state_dict(state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"format": "other"}, "must be what state_dict"),
        ({"order_version": 0}, "order_version of the state must be 1, got 0"),
        ({"fingerprint": None}, "must hold a fingerprint"),
        ({"epoch": -1}, "epoch of the state must be in"),
        ({"parts": [[1, 1000]]}, "beyond the end of epoch 0"),
        ({"parts": [[0, 1]]}, r"pairs \(number of consumers"),
        ({"parts": "all"}, r"pairs \(number of consumers"),
    ],
)
def test_a_damaged_state_is_refused(stores, changed, message):
    ds = loader(stores[0])
    with pytest.raises(InputError, match=message):
        ds.load_state_dict(ds.state_dict() | changed)
    with pytest.raises(InputError, match="must be what state_dict"):
        ds.load_state_dict([])


def test_nothing_is_replayed(stores, monkeypatch):
    """Of an epoch that stood in its fifth window, four are neither planned nor read."""
    ds = loader(stores[0], batch_size=4, chunk_size=2, preload_nchunks=4, prefetch=0)
    iterator = iter(ds)
    for _ in range(9):
        next(iterator)
    planned = []
    window = Segment.window

    def recorded(segment, number, index):
        planned.append(number)
        return window(segment, number, index)

    monkeypatch.setattr(Segment, "window", recorded)
    resumed = loader(stores[0], batch_size=4, chunk_size=2, preload_nchunks=4, prefetch=0)
    resumed.load_state_dict(ds.state_dict())
    next(iter(resumed))
    assert planned == [4]


def test_a_state_is_small_and_survives_json(stores):
    ds = loader(stores[0], "stratified", rows=np.arange(3, N))
    next(iter(ds))
    text = json.dumps(ds.state_dict())
    assert len(text) < 1500
    ds.load_state_dict(json.loads(text))
