"""Is what `obs`, `names` and `classes` give what pandas finds in the obs of the inputs?

The truth is ``pandas.concat`` of the inputs' obs, row by row of ``index``.
"""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

import annbatch
from annbatch import Collection, InputError, Loader, StoreError
from annbatch.stores import cell_names, obs_rows
from annbatch.write.output import store_writer
from datagen import awkward_obs, named_adata
from epochs import each_batch
from stores import named_stores

N = 98
OPTIONS: dict[str, Any] = {"batch_size": 8, "chunk_size": 3, "preload_nchunks": 5, "threads": 1}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return named_stores(tmp_path_factory.mktemp("stores"), "v3 sharded")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stores, whose names lie in several chunks."""
    folder = tmp_path_factory.mktemp("collection")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # anndata 0.13 has reasons of its own to warn of nullable columns.
        warnings.simplefilter("ignore")
        patch.setattr(store_writer, "NAMES_IN_CHUNK", 4)
        adata = named_adata(np.random.default_rng(0), range(N), range(12))
        annbatch.create_anndata_collection([adata], folder / "c", rows_per_store=40, progress=False)
    return folder / "c"


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """A table whose text has the same type under every version of pandas."""
    text = [name for name, dtype in frame.dtypes.items() if pd.api.types.is_string_dtype(dtype)]
    return frame.astype(dict.fromkeys(text, object)).set_axis(frame.index.astype(object))


def truth_of(path: Path) -> pd.DataFrame:
    """obs of a collection as AnnData reads it, with its own categories."""
    frames = [ad.read_zarr(store).obs for store in Collection.open(path).store_paths]
    whole = pd.concat(frames)
    for name in whole:
        if isinstance(frames[0][name].dtype, pd.CategoricalDtype):
            whole[name] = pd.Categorical(whole[name], dtype=frames[0][name].dtype)
    return whole


@pytest.mark.parametrize("rows_at_once", [7, 1 << 20])
def test_obs_is_that_of_the_stores(collection, monkeypatch, rows_at_once):
    monkeypatch.setattr(obs_rows, "ROWS_AT_ONCE", rows_at_once)
    truth = plain(truth_of(collection))
    # Also where names are too many to be kept.
    for keep in (1 << 16, 2):
        monkeypatch.setattr(cell_names, "KEEP_ROWS", keep)
        pd.testing.assert_frame_equal(plain(Collection.open(collection).obs()), truth)
    ds = Loader(**OPTIONS).use_collection(collection, labels=["stage"])
    pd.testing.assert_frame_equal(plain(ds.obs()), truth)
    pd.testing.assert_frame_equal(plain(ds.obs(["age", "donor"])), truth[["age", "donor"]])
    assert ds.obs([]).shape == (N, 0)


def test_the_obs_of_a_part_is_that_of_its_rows(stores):
    adatas, _, obs = stores
    ds = Loader(**OPTIONS).add_anndatas(adatas, labels=["stage"])
    truth = plain(obs.assign(cell_type=pd.Categorical(obs["cell_type"], ["B", "T", "NK", "Mono"])))
    pd.testing.assert_frame_equal(plain(ds.obs()), truth)
    for part in ds.split({"train": 0.6, "test": 0.4}).values():
        index = np.sort(np.concatenate([batch.index for batch in part]))
        pd.testing.assert_frame_equal(plain(part.obs(["score"])), truth.iloc[index][["score"]])
    named = [31, 2, 77, 5]
    chosen = Loader(**OPTIONS, rows=named, shuffle=False).add_anndatas(adatas, labels=[])
    pd.testing.assert_frame_equal(plain(chosen.obs(["n_counts"])), truth.iloc[named][["n_counts"]])
    shuffled = chosen.replace(shuffle=True)
    pd.testing.assert_frame_equal(plain(shuffled.obs(["n_counts"])), truth.iloc[sorted(named)][["n_counts"]])


@pytest.mark.parametrize("rows", [None, [20, 3, 9, 4, 80], "a part"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_are_those_of_obs_and_batches(stores, rows, shuffle):
    adatas, _, obs = stores
    given = None if isinstance(rows, str) else rows
    ds = Loader(**OPTIONS, shuffle=shuffle, rows=given).add_anndatas(adatas)
    ds = ds.split({"a": 0.3, "b": None})["a"] if isinstance(rows, str) else ds
    assert ds.rows.dtype == np.int64
    came = np.concatenate([batch["index"] for batch in ds])
    np.testing.assert_array_equal(ds.rows, np.sort(came) if shuffle else came)
    assert ds.obs([]).index.tolist() == obs.index[ds.rows].tolist()


def test_columns_that_not_all_have_are_named(stores):
    first, second = awkward_obs(range(6)), awkward_obs(range(6, 9)).rename(columns={"age": "weeks"})
    rng = np.random.default_rng(0)
    adatas = [named_adata(rng, range(len(obs)), range(5), obs=obs) for obs in (first, second)]
    ds = Loader(**OPTIONS).add_anndatas(adatas, labels=["stage"])
    with pytest.warns(UserWarning, match=r"obs columns are missing .*'age' is not in adatas\[1\], 'weeks' is not in"):
        found = ds.obs()
    assert list(found) == [*first, "weeks"]
    assert found["age"].tolist()[:6] == first["age"].tolist()
    assert found["age"].isna().tolist()[6:] == found["weeks"].isna().tolist()[:3] == [True] * 3
    with pytest.warns(UserWarning, match="'age' is not in"):
        pd.testing.assert_frame_equal(ds.obs(["age"]), found[["age"]])
    with pytest.raises(InputError, match=r"adatas\[0\]: columns must be obs columns, got 'no'"):
        ds.obs(["no"])
    with pytest.raises(TypeError, match="columns must be a sequence of names"):
        ds.obs("age")


@pytest.mark.parametrize("keep", [2, 1 << 16])
def test_names_are_those_of_the_rows(stores, collection, monkeypatch, keep):
    monkeypatch.setattr(cell_names, "KEEP_ROWS", keep)
    loaders = [
        (Loader(**OPTIONS, names=True).add_anndatas(stores[0], labels=["stage"]), stores[2].index),
        (Loader(**OPTIONS, names=True).use_collection(collection, labels=["stage"]), truth_of(collection).index),
    ]
    for ds, names in loaders:
        seen: list[str] = []
        for batch in ds:
            assert list(batch) == ["data", "labels", "index", "names"]
            assert batch["names"].tolist() == names[batch.index].tolist() == batch["labels"].index.tolist()
            assert all(isinstance(name, str) for name in batch.names)
            seen += batch.names.tolist()
        assert sorted(seen) == sorted(names)


def test_names_may_repeat_and_padding_has_none(stores):
    adatas, x, _ = stores
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        adata = ad.AnnData(X=x[:6], obs=pd.DataFrame(index=["a", "b", "a", "", "c", "a"]))
        ds = Loader(batch_size=4, shuffle=False, names=True).add_anndatas([adata])
    batches = list(ds.batches(annbatch.Emit(pad_rows=True)))
    assert [batch.names.tolist() for batch in batches] == [["a", "b", "a", ""], ["c", "a", "", ""]]
    assert batches[1].labels.index.tolist() == ["c", "a"]
    assert ds.obs().index.tolist() == ["a", "b", "a", "", "c", "a"]


def test_names_that_are_nowhere_are_refused(tmp_path, collection):
    path = tmp_path / "c"
    shutil.copytree(collection, path)
    manifest = json.loads((path / "collection.json").read_text())
    for store in manifest["stores"]:
        store["files"] = {}
    (path / "collection.json").write_text(json.dumps(manifest))
    obs = zarr.open_group(path / "chunk_1.zarr" / "obs", mode="r+")
    attributes = dict(obs.attrs)
    del attributes["_index"]
    obs.attrs.put(attributes)
    with pytest.raises(InputError, match=r"chunk_1.zarr: obs must have an index with the names"):
        Loader(**OPTIONS, names=True).use_collection(path, labels=[])
    ds = Loader(**OPTIONS).use_collection(path, labels=[])
    assert len(next(iter(ds)).index) == 8
    with pytest.raises(InputError, match="obs must have an index with the names"):
        ds.obs(["stage"])
    obs.attrs.put(attributes | {"_index": "short"})
    ad.io.write_elem(obs, "short", np.array(["x"], object), dataset_kwargs={"chunks": (1,), "shards": None})
    with pytest.raises(StoreError, match="must have n_obs = 40 names, got 1"):
        Loader(**OPTIONS, names=True).use_collection(path, labels=[])


CLASSES = ["n_counts", "doublet", "age", "treated", "donor", "stage"]


@pytest.mark.parametrize("labels", [["stage"], None])
def test_columns_come_as_classes(stores, labels):
    adatas, _, obs = stores
    ds = Loader(**OPTIONS, classes=CLASSES).add_anndatas(adatas, labels=labels)
    wanted = obs.assign(**{name: pd.Categorical(obs[name]) for name in CLASSES if name not in ("donor", "stage")})
    assert set(CLASSES) <= set(ds.categories)
    for batch in each_batch(ds):
        for name in CLASSES:
            truth, codes = wanted[name].iloc[batch.index], batch.codes[name]
            assert codes.dtype == np.int32
            categories = ds.categories[name]
            found = [None if code < 0 else categories[code] for code in codes]
            assert found == [None if pd.isna(value) else value for value in truth]
            shown = batch.labels[name]
            assert isinstance(shown.dtype, pd.CategoricalDtype)
            assert shown.dtype.categories.tolist() == categories.tolist()
            assert shown.cat.codes.tolist() == codes.tolist()
    for name in ("n_counts", "age", "doublet"):
        assert ds.categories[name].tolist() == wanted[name].cat.categories.tolist()
    assert ds.obs(["age"])["age"].cat.categories.tolist() == ds.categories["age"].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["nope"]}, r"adatas\[0\]: classes must be obs columns, got 'nope'"),
        ({"classes": ["score"]}, r"obs\['score'\] must hold categories, text, integers or booleans .* got float32"),
        ({"sampler": annbatch.samplers.Grouped("nope")}, r"columns of the sampler must be obs columns, got 'nope'"),
    ],
)
def test_columns_that_cannot_be_classes_are_refused_before_work(stores, options, message):
    with pytest.raises(InputError, match=message):
        Loader(**OPTIONS, **options).add_anndatas(stores[0], labels=["stage"])


def test_a_state_knows_the_columns_that_are_classes(stores):
    ds = Loader(**OPTIONS).add_anndatas(stores[0], labels=["stage"])
    state = ds.state_dict()
    with pytest.raises(InputError, match=r"class_columns is missing in the state and \['doublet'\] here"):
        ds.replace(classes=["doublet"]).load_state_dict(state)
    # What only comes beside the rows is free.
    ds.replace(names=True).load_state_dict(state)


def test_integers_are_classes_of_samplers_and_splits(stores):
    adatas, _, obs = stores
    sampler = annbatch.samplers.Grouped(["doublet", "donor"])
    ds = Loader(**OPTIONS, sampler=sampler).add_anndatas(adatas, labels=["stage"])
    rows = []
    for batch in ds:
        assert list(batch.codes) == ["stage"]
        assert len(obs.iloc[batch.index][["doublet", "donor"]].drop_duplicates()) == 1
        rows += batch.index.tolist()
    assert sorted(rows) == list(range(N))
    parts = ds.replace(shuffle=True).split({"rest": None, "a": [0, 30]}, by="n_counts")
    assert obs["n_counts"].iloc[next(iter(parts["a"])).index].sort_values().tolist() == [0, 30]
    pairs = ds.split({"rest": None, "a": [(True, "donor2"), (False, "donor1")]}, by=["doublet", "donor"])
    found = pairs["a"].obs(["doublet", "donor"]).drop_duplicates()
    assert sorted(map(tuple, found.to_numpy().tolist())) == [(False, "donor1"), (True, "donor2")]


def test_a_loader_from_a_loader(stores):
    adatas, x, obs = stores
    ds = Loader(**OPTIONS, drop_last=True).add_anndatas(adatas, labels=["stage"])
    iterating = iter(ds)
    first = next(iterating).index
    part = ds.split({"train": 0.5, "test": 0.5}, seed=3)["test"]
    for made in (part.replace(shuffle=False, drop_last=False, batch_size=50), copied(part)):
        batches = list(made)
        index = np.concatenate([batch.index for batch in batches])
        assert np.array_equal(index, np.sort(np.concatenate([b.index for b in part.replace(drop_last=False)])))
        assert made.n_obs == part.n_obs == len(index)
        assert made._dataset.stores == ds._dataset.stores
        np.testing.assert_array_equal(batches[0].data.to_scipy().toarray(), x[batches[0].index].toarray())
    # The first loader is not disturbed.
    again = Loader(**OPTIONS, drop_last=True).add_anndatas(adatas, labels=["stage"])
    assert [b.index.tolist() for b in again] == [first.tolist(), *(b.index.tolist() for b in iterating)]
    assert made.state_dict()["fingerprint"]["split"]["part"] == "test"
    other = ds.replace(rows=[5, 1], shuffle=False, drop_last=False, var_names=["g3", "g0"])
    np.testing.assert_array_equal(next(iter(other)).data.to_scipy().toarray(), x[[5, 1]][:, [3, 0]].toarray())
    sampled = other.replace(sampler=annbatch.samplers.ClassBalanced("stage", n_rows=16), rows=None)
    assert sum(len(batch.index) for batch in sampled) == 16
    assert type(sampled.replace(shuffle=False).sampler).__name__ == "Sequential"
    with pytest.raises(TypeError, match="shufle"):  # codespell:ignore
        ds.replace(shufle=False)  # codespell:ignore
    with pytest.raises(InputError, match="layers must hold 'counts'"):
        ds.replace(layers=["counts"])


def copied(part: Loader) -> Loader:
    options = {"shuffle": False, "drop_last": False, "batch_size": 50}
    return copy.replace(part, **options) if sys.version_info >= (3, 13) else part.__replace__(**options)


def test_what_is_replaced_may_have_to_be_opened_again(tmp_path):
    adata = named_adata(np.random.default_rng(0), range(20), range(6))
    adata.layers["twice"] = adata.X * 2
    in_memory = Loader(batch_size=20).add_anndatas([adata], labels=["stage"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        annbatch.create_anndata_collection([adata], tmp_path / "c", progress=False)
    on_disk = Loader(batch_size=20).use_collection(tmp_path / "c", labels=["stage"])
    for ds in (in_memory, on_disk, pickle.loads(pickle.dumps(on_disk))):
        (batch,) = ds.replace(layers=["twice"])
        np.testing.assert_array_equal(batch.layers["twice"].to_scipy().toarray(), 2 * batch.data.to_scipy().toarray())


def test_a_loader_that_has_no_stores_yet_is_replaced(stores):
    ds = Loader(**OPTIONS).replace(batch_size=4).add_anndatas(stores[0], labels=["stage"])
    assert len(next(iter(ds)).index) == 4
