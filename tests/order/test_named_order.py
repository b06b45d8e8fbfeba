"""Do rows that are named one by one come in that order where nothing is shuffled, and only there?"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import Emit, InputError, Loader, Partition
from annbatch.samplers import Sequential

N = 40
ROWS = st.lists(st.integers(0, N - 1), min_size=1, max_size=N, unique=True)
DONOR = np.arange(N) % 3


def loader(rows: Any, **options: Any) -> Loader:
    obs = pd.DataFrame({"donor": pd.Categorical([f"d{k}" for k in DONOR])}, index=[str(i) for i in range(N)])
    x = sp.csr_matrix(np.diag(np.arange(1, N + 1).astype(np.float32)))
    parts = [ad.AnnData(X=x[start:stop], obs=obs[start:stop]) for start, stop in ((0, 13), (13, 14), (14, N))]
    defaults: dict[str, Any] = {"batch_size": 4, "chunk_size": 3, "preload_nchunks": 4, "threads": 1, "prefetch": 0}
    return Loader(rows=rows, **(defaults | options)).add_anndatas(parts)


def index_of(ds: Loader) -> list[int]:
    found = []
    for batch in ds:
        index = batch.index
        np.testing.assert_array_equal(batch.data.to_scipy().toarray(), np.diag(np.arange(1, N + 1))[index])
        assert batch.labels["donor"].tolist() == [f"d{k}" for k in DONOR[index]]
        found += index.tolist()
    return found


@settings(max_examples=25)
@given(ROWS, st.integers(0, 10))
def test_rows_come_as_named_in_every_epoch_and_after_a_resume(rows, n_batches):
    ds = loader(rows, shuffle=False)
    assert [index_of(ds) for _ in range(2)] == [rows, rows]
    ds.set_epoch(0)
    batches = iter(ds)
    had = [row for _, batch in zip(range(n_batches), batches, strict=False) for row in batch.index.tolist()]
    state = ds.state_dict()
    resumed = loader(rows, shuffle=False)
    resumed.load_state_dict(state)
    assert had + index_of(resumed) == (rows if state["epoch"] == 0 else rows * 2)


@settings(max_examples=25)
@given(ROWS, st.integers(1, 3))
def test_consumers_share_them_as_they_share_a_table(rows, count):
    def fresh(given: Any) -> list[list[int]]:
        ds = loader(given, shuffle=False)
        found = []
        for k in range(count):
            ds.set_epoch(0)
            found.append([row for batch in ds.batches(Emit(), Partition(k, count)) for row in batch.index.tolist()])
        return found

    assert fresh(rows) == [[rows[place] for place in share] for share in fresh(list(range(len(rows))))]


@settings(max_examples=25)
@given(ROWS.filter(lambda rows: rows != sorted(rows)), st.integers(0, 3))
def test_where_rows_are_shuffled_they_are_a_set(rows, seed):
    mask = np.isin(np.arange(N), rows)
    loaders = [loader(given, seed=seed) for given in (rows, sorted(rows), mask)]
    assert len({tuple(index_of(ds)) for ds in loaders}) == 1
    loaders[0].load_state_dict(loaders[1].state_dict())


def test_a_state_is_for_one_order():
    ds = loader([5, 3, 9], shuffle=False)
    state = ds.state_dict()
    loader([5, 3, 9], sampler=Sequential()).load_state_dict(state)
    for other in ([3, 5, 9], [9, 3, 5]):
        with pytest.raises(InputError, match="rows is"):
            loader(other, shuffle=False).load_state_dict(state)
    # Ascending rows are the mask of the same rows.
    loader([3, 5, 9], shuffle=False).load_state_dict(
        loader(np.isin(np.arange(N), [3, 5, 9]), shuffle=False).state_dict()
    )


@settings(max_examples=25)
@given(ROWS.filter(lambda rows: len(rows) > 3), st.integers(0, 5))
def test_parts_keep_the_order(rows, seed):
    ds = loader(rows, shuffle=False)
    by_fraction = ds.split({"a": 0.5, "b": None}, seed=seed)
    of_the_set = loader(sorted(rows), shuffle=False).split({"a": 0.5, "b": None}, seed=seed)
    for name, part in by_fraction.items():
        members = set(index_of(of_the_set[name]))
        assert index_of(part) == [row for row in rows if row in members]
    donors = sorted({int(DONOR[row]) for row in rows})
    for name, part in ds.split({f"d{k}": [f"d{k}"] for k in donors}, by="donor").items():
        assert index_of(part) == [row for row in rows if f"d{DONOR[row]}" == name]
    named = rows[1::-1]
    masked = np.isin(np.arange(N), rows[2:3])
    parts = ds.split({"named": named, "ascending": masked, "rest": None})
    assert index_of(parts["named"]) == named
    assert index_of(parts["rest"]) == rows[3:]
    assert index_of(ds.split({"mask": np.isin(np.arange(N), named)})["mask"]) == rows[:2]
    assert index_of(loader(None, shuffle=False).split({"named": named})["named"]) == named


def test_rows_that_repeat_are_named():
    with pytest.raises(InputError, match="rows must name each row once, got row 7 more than once"):
        len(loader([50 % N, 7, 3, 7], shuffle=False))
