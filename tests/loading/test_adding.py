"""Do several calls that add stores give the same as one call with all of them?"""

from __future__ import annotations

import json
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch import InputError, Loader, create_anndata_collection
from annbatch.samplers import ClassBalanced, Grouped
from epochs import each_batch

DONORS = ("ada", "ben", "cy", "dee")


def cells(donors: list[str], first: int = 0) -> ad.AnnData:
    """Cells whose values and ``n`` say which cell of all they are."""
    n = np.arange(first, first + len(donors))
    obs = pd.DataFrame({"donor": pd.Series(donors, dtype=object), "n": n})
    x = sp.csr_matrix((n + 1.0).astype(np.float32)[:, None] * np.ones(3, np.float32))
    return ad.AnnData(X=x, obs=obs.set_index(obs.index.astype(str)))


def content(ds: Loader) -> list[Any]:
    """All that an epoch hands over, and what the codes mean."""
    batches = [
        (
            batch.index.tolist(),
            batch.data.to_scipy().toarray().tolist(),
            {name: codes.tolist() for name, codes in batch.codes.items()},
            batch.labels.astype(str).to_dict("list"),
        )
        for batch in each_batch(ds)
    ]
    return [batches, {name: list(found) for name, found in ds.categories.items()}, json.dumps(ds.state_dict())]


@settings(max_examples=40)
@given(
    stores=st.lists(st.lists(st.sampled_from(DONORS), min_size=1, max_size=6), min_size=2, max_size=5),
    cuts=st.lists(st.integers(0, 5), max_size=3),
    labels=st.sampled_from([None, ["n"], ["n", "donor"]]),
    sampler=st.sampled_from([None, ClassBalanced("donor"), Grouped("donor")]),
    data=st.data(),
)
def test_calls_add_up(stores, cuts, labels, sampler, data):
    first = np.cumsum([0, *map(len, stores)])
    adatas = [cells(donors, start) for donors, start in zip(stores, first[:-1].tolist(), strict=True)]
    rows = data.draw(st.none() | st.sets(st.integers(0, int(first[-1]) - 1), min_size=1).map(sorted))
    options: dict[str, Any] = {"batch_size": 3, "chunk_size": 2, "preload_nchunks": 3, "rows": rows, "sampler": sampler}
    at_once = Loader(**options, threads=1).add_anndatas(adatas, labels)
    in_calls = Loader(**options, threads=1)
    edges = sorted({0, len(adatas), *(min(cut, len(adatas)) for cut in cuts)})
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        in_calls.add_anndatas(adatas[start:stop], labels)
    assert content(in_calls) == content(at_once)
    donors = np.array([donor for store in stores for donor in store])
    for batch in in_calls:
        assert batch.labels["n"].tolist() == batch.index.tolist()
        np.testing.assert_array_equal(batch.data.to_scipy().toarray()[:, 0], batch.index + 1)
        if labels is None or "donor" in labels:
            assert batch.labels["donor"].tolist() == donors[batch.index].tolist()
        else:
            assert list(batch.codes) == ["n"]
    if sampler is None:
        parts = [ds.split({"a": 0.5, "b": None}, seed=1) for ds in (at_once, in_calls)]
        assert content(parts[0]["b"]) == content(parts[1]["b"])


def test_collections_whose_stores_have_the_same_names(tmp_path):
    for name, donor in (("a", "ada"), ("b", "ben")):
        create_anndata_collection(cells([donor] * 6), tmp_path / name, rows_per_store=4, progress=False)
    ds = Loader(batch_size=6, shuffle=False)
    for name in ("a", "b", "a"):
        ds.use_collection(tmp_path / name, labels=["donor"])
    ds.add_anndatas([cells(["cy"] * 6)], labels=["donor"])
    found = [batch.labels["donor"].unique().tolist() for batch in ds]
    assert found == [["ada"], ["ben"], ["ada"], ["cy"]]


def test_a_sampler_with_a_hidden_column_knows_all_calls():
    ds = Loader(batch_size=4, sampler=Grouped("donor"), seed=2)
    for donor in DONORS:
        ds.add_anndatas([cells([donor] * 4)], labels=["n"])
    groups = sorted(batch.index.tolist() for batch in ds if list(batch.codes) == ["n"] and batch.index.sort() is None)
    assert groups == [list(range(start, start + 4)) for start in range(0, 16, 4)]


def test_messages_number_the_objects_through_all_calls():
    labels = ["donor", "n"]
    ds = Loader(batch_size=4).add_anndatas([cells(["ada"]), cells(["ben"])], labels)
    with pytest.raises(InputError, match=r"adatas\[2\]: must have the same genes as adatas\[0\]"):
        ds.add_anndatas([cells(["cy"])[:, :2].copy()], labels)
    # What was refused leaves no trace.
    with pytest.raises(InputError, match=r"adatas\[2\]: must have the same genes as adatas\[0\]"):
        ds.add_anndatas([cells(["cy"])[:, :2].copy()], labels)
    other = cells(["dee"])
    other.obs["donor"] = [1.5]
    with pytest.raises(InputError, match=r"got category of string in adatas\[0\], number in adatas\[3\]"):
        ds.add_anndatas([cells(["cy"]), other], labels)
    assert ds.n_obs == 2


@pytest.mark.parametrize(("first", "second"), [(["n"], ["donor"]), (None, ["n"]), (["n"], None), ([], None)])
def test_labels_that_differ_between_calls_are_refused(first, second):
    ds = Loader(batch_size=4).add_anndatas([cells(["ada"])], labels=first)
    with pytest.raises(InputError, match="labels must be the same in all calls"):
        ds.add_anndatas([cells(["ben"])], labels=second)
    assert list(next(iter(ds)).codes) == (["donor", "n"] if first is None else first)


def test_labels_in_another_order_are_the_same_labels():
    ds = Loader(batch_size=4).add_anndatas([cells(["ada"])], labels=["n", "donor"])
    ds.add_anndatas([cells(["ben"], 1)], labels=["donor", "n"])
    assert list(next(iter(ds)).labels) == ["n", "donor"]


def test_a_column_that_a_store_lacks_is_named_once():
    ds = Loader(batch_size=4).add_anndatas([cells(["ada"])])
    other = cells(["ben"], 1)
    other.obs["age"] = other.obs.pop("donor")
    with pytest.warns(UserWarning, match="obs columns are missing") as warned:
        ds.add_anndatas([other])
    message = "obs columns are missing in the rows of stores that lack them: 'donor' is not in adatas[1], 'age' is not"
    assert [str(one.message) for one in warned] == [f"{message} in adatas[0]"]
    assert warned[0].filename == __file__
    ds.add_anndatas([cells(["cy"], 2)])
    assert list(next(iter(ds)).codes) == ["donor", "n", "age"]
