"""Is every batch of every store form and option what SciPy gives for its row numbers?"""

from __future__ import annotations

import gc
import os
import pickle
import traceback
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annbatch import Batch, Capacity, CorruptStoreError, Emit, InputError, Loader, Partition, StoreError
from annbatch import loader as loader_module
from annbatch.batches import csr_memory as memory_module
from annbatch.stores import array_opening as opening_module
from datagen import awkward_obs, named_matrix
from epochs import each_batch
from forked import in_a_fork
from live_threads import background_threads
from stores import FORMS, named_stores, opened, write_store


@pytest.fixture(scope="module")
def stores_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {form: named_stores(folder / form.replace(" ", "_"), form) for form in FORMS}


@pytest.fixture(params=FORMS)
def stores(request, stores_folder):
    return stores_folder[request.param]


@pytest.fixture
def sharded(stores_folder):
    return stores_folder["v3 sharded"]


def check_epoch(ds: Loader, x: sp.csr_matrix, obs: pd.DataFrame, emit: Emit = Emit()) -> list[Batch]:  # noqa: B008
    """Compare an epoch with the oracle, after all of it has been read; give the batches."""
    batches = list(ds.batches(emit))
    assert len(batches) == len(ds)
    for batch in batches:
        rows = batch.index[batch.index >= 0]
        expected = x[rows]
        if emit.layout == "dense":
            found = batch.data
        else:
            found = batch.data.to_scipy()
            assert found.has_canonical_format
            found = found.toarray()
        n = len(rows)
        assert found.shape == (ds.batch_size if emit.pad_rows else n, x.shape[1])
        np.testing.assert_array_equal(found[:n], expected.toarray())
        assert not found[n:].any()
        assert found.dtype == (emit.dtype or x.dtype)
        assert (batch.index[n:] == -1).all()
        if obs is not None:
            check_labels(batch, obs.iloc[rows], ds)
    return batches


def check_labels(batch: Batch, expected: pd.DataFrame, ds: Loader) -> None:
    n = len(expected)
    assert list(batch.labels.columns) == list(expected.columns)
    assert list(batch.labels.index) == list(batch.index[:n])
    for name, values in batch.codes.items():
        missing = expected[name].isna().to_numpy()
        if name in ds.categories:
            assert values.dtype == np.int32
            names = np.asarray(ds.categories[name], object)
            np.testing.assert_array_equal(values[:n] == -1, missing)
            assert names[values[:n]][~missing].tolist() == expected[name][~missing].tolist()
            assert (values[n:] == -1).all()
        else:
            assert values.dtype == {"n_counts": "i8", "age": "f8", "doublet": "?"}.get(name, "f4")
            wanted = expected[name].astype("Float64").to_numpy(np.float64, na_value=np.nan)
            np.testing.assert_array_equal(values[:n], wanted.astype(values.dtype))
            filling = {"f": np.nan, "b": False, "i": -1}[values.dtype.kind]
            np.testing.assert_array_equal(values[n:], np.full(len(values) - n, filling))
        shown = batch.labels[name]
        np.testing.assert_array_equal(shown.isna().to_numpy(), missing)
        assert shown[~missing].tolist() == expected[name][~missing].tolist()


def test_every_store_form(stores):
    adatas, x, obs = stores
    ds = Loader(batch_size=8, chunk_size=5, preload_nchunks=3).add_anndatas(adatas)
    assert (ds.n_obs, ds.n_vars) == x.shape
    assert list(ds.var.index) == [f"g{c}" for c in range(x.shape[1])]
    if x.dtype != np.float32:
        x = x.astype(adatas[0].X.dtype)
    batches = check_epoch(ds, x.astype(next(iter(ds)).data.data.dtype), obs)
    rows = np.concatenate([batch.index for batch in batches])
    np.testing.assert_array_equal(np.sort(rows), np.arange(ds.n_obs))


@pytest.mark.parametrize("direct", [True, False])
def test_every_store_form_gives_the_same_batches(stores_folder, direct, monkeypatch):
    """Bit for bit, whatever reads them."""
    monkeypatch.setattr(opening_module, "DIRECT", direct)
    reference, read_directly = None, set()
    for form, (adatas, _, _) in stores_folder.items():
        if "uint16" in form:
            continue
        ds = Loader(batch_size=8, chunk_size=5, preload_nchunks=3, seed=3).add_anndatas(adatas)
        if ds._opened().stores[0].matrices["X"].slow is None:
            read_directly.add(form)
        found = [
            (b.data.data.tobytes(), b.data.indices.tobytes(), b.data.indptr.tobytes(), b.index.tobytes()) for b in ds
        ]
        assert len(found) == len(ds)
        reference = reference or found
        assert found == reference, form
    expected = {"v3 sharded", "v3 one chunk", "v3 plain chunks", "v3 uncompressed", "v3 gzip", "v2"}
    assert read_directly == (expected if direct else set())


def test_the_path_taken_is_said_once(stores_folder, caplog):
    with caplog.at_level("INFO", "annbatch"):
        ds = Loader(batch_size=8).add_anndatas(stores_folder["v3 big endian"][0])
        list(ds)
        list(ds)
    assert [record.message for record in caplog.records] == [
        "zarr, not the direct path, reads adatas[0] X and 2 more: the values are not little-endian"
    ]
    caplog.clear()
    with caplog.at_level("INFO", "annbatch"):
        assert list(Loader(batch_size=8).add_anndatas(stores_folder["v3 sharded"][0]))
    assert not caplog.records


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    batch_size=st.integers(1, 120),
    chunk_size=st.integers(1, 70),
    preload_nchunks=st.integers(1, 40),
    shuffle=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    drop_last=st.booleans(),
    prefetch=st.integers(0, 3),
    threads=st.sampled_from([None, 1, 3]),
    count=st.integers(1, 4),
    layout=st.sampled_from(["csr", "dense"]),
    padded=st.booleans(),
    dtype=st.sampled_from([None, np.dtype(np.float64), np.dtype(np.int32)]),
)
def test_every_option(
    sharded,
    batch_size,
    chunk_size,
    preload_nchunks,
    shuffle,
    seed,
    drop_last,
    prefetch,
    threads,
    count,
    layout,
    padded,
    dtype,
):
    """Batches larger than a window or than everything, blocks larger than a store, single rows: all are `X[index]`."""
    adatas, x, obs = sharded
    emit = Emit(dtype=dtype, layout=layout, nse=Capacity(smallest=8) if padded else None, pad_rows=padded)
    rows = []
    for i in range(count):
        ds = Loader(
            batch_size=batch_size,
            chunk_size=chunk_size,
            preload_nchunks=preload_nchunks,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            prefetch=prefetch,
            threads=threads,
            partition=Partition(i, count),
            casting="unsafe",
        ).add_anndatas(adatas)
        batches = check_epoch(ds, x if dtype is None else x.astype(dtype), obs, emit)
        rows += [row for batch in batches for row in batch.index if row >= 0]
    assert len(set(rows)) == len(rows)
    if drop_last:
        assert len(rows) > x.shape[0] - count * batch_size
    else:
        assert len(rows) == x.shape[0]
    if not shuffle and count == 1:
        assert rows == list(range(len(rows)))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
def test_random_matrices(tmp_path_factory, data):
    """Empty rows and stores of one row; chunks that end within rows, and rows that span many chunks."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    density = data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
    n_vars = data.draw(st.integers(1, 40))
    chunks, shards = data.draw(st.integers(1, 50)), data.draw(st.sampled_from([None, 1, 4]))
    folder = tmp_path_factory.mktemp("random")
    matrices, adatas = [], []
    for i in range(len(sizes)):
        rows = range(sum(sizes[:i]), sum(sizes[: i + 1]))
        matrices.append(named_matrix(rng, rows, range(n_vars), density=density))
        obs = awkward_obs(rows)[["stage"]]
        root = write_store(str(folder / f"{i}.zarr"), matrices[-1], obs, chunks=chunks, shards=shards)
        adatas.append(opened(root))
    ds = Loader(batch_size=data.draw(st.integers(1, 20)), chunk_size=4, preload_nchunks=3).add_anndatas(adatas)
    check_epoch(ds, sp.csr_matrix(sp.vstack(matrices)), None)


def test_a_window_that_spans_stores_of_different_sizes_keeps_rows_and_labels_together(tmp_path):
    """Rows near the end of one store and the start of the next, in one window."""
    adatas, x, obs = named_stores(tmp_path, "v3 sharded", sizes=(5, 40, 3, 17))
    for shuffle in (False, True):
        ds = Loader(batch_size=7, chunk_size=4, preload_nchunks=50, shuffle=shuffle).add_anndatas(adatas)
        check_epoch(ds, x, obs)


def test_batches_have_the_documented_shape(sharded):
    adatas, x, obs = sharded
    ds = Loader(batch_size=10, chunk_size=4, preload_nchunks=5).add_anndatas(adatas, labels=["cell_type", "score"])
    batch = next(iter(ds))
    assert list(batch) == ["data", "labels", "index"]
    assert len(batch) == 3
    assert dict(batch)["data"] is batch.data
    assert batch["labels"] is batch.labels
    assert list(batch.labels.columns) == ["cell_type", "score"]
    assert batch.index.dtype == np.int64
    assert (batch.data.data.dtype, batch.data.indices.dtype, batch.data.indptr.dtype) == (x.dtype, np.int32, np.int32)
    assert batch.data.nnz == x[batch.index].nnz
    with pytest.raises(KeyError):
        batch["codes"]
    assert list(ds.categories) == ["cell_type"]
    assert list(ds.categories["cell_type"]) == ["B", "T", "NK", "Mono"]
    without = next(iter(Loader(batch_size=10, return_index=False).add_anndatas(adatas)))
    assert list(without) == ["data", "labels"]
    assert without.index is None


def test_buffers_are_aligned_and_one_batch_is_one_slab(sharded):
    adatas, _, _ = sharded
    for batch in each_batch(Loader(batch_size=8, chunk_size=5, preload_nchunks=3).add_anndatas(adatas)):
        for part in (batch.data.data, batch.data.indices, batch.data.indptr):
            assert part.ctypes.data % 64 == 0


def test_padding_is_zeros_behind_the_last_row(sharded):
    adatas, x, _ = sharded
    ds = Loader(batch_size=12, chunk_size=5, preload_nchunks=3).add_anndatas(adatas)
    for _ in range(3):
        for batch in each_batch(ds.batches(Emit(nse=Capacity(fixed=700), pad_rows=True)), len(ds)):
            csr = batch.data
            assert csr.data.shape == csr.indices.shape == (700,)
            assert csr.indptr.shape == (13,)
            assert not csr.data[csr.nnz :].any()
            assert not csr.indices[csr.nnz :].any()


def test_batches_that_are_kept_stay_what_they_were(sharded):
    """A whole run is kept while slabs are recycled around it, in random order, and compared at the end."""
    adatas, x, obs = sharded
    rng = np.random.default_rng(0)
    ds = Loader(batch_size=8, chunk_size=5, preload_nchunks=3).add_anndatas(adatas)
    kept = []
    for _ in range(6):
        for batch in ds:
            kept.append((batch.data, batch.index))
            if rng.random() < 0.5:
                del kept[rng.integers(len(kept))]
        gc.collect()
    assert len(kept) > 20
    for data, index in kept:
        np.testing.assert_array_equal(data.to_scipy().toarray(), x[index].toarray())


class TestEpochs:
    def orders(self, ds: Loader) -> list[int]:
        return [row for batch in ds for row in batch.index]

    def test_each_iter_is_the_next_epoch(self, sharded):
        adatas, _, _ = sharded
        ds = Loader(batch_size=8, chunk_size=2, preload_nchunks=4).add_anndatas(adatas)
        first, second = self.orders(ds), self.orders(ds)
        assert first != second
        assert sorted(first) == sorted(second)
        ds.set_epoch(0)
        assert self.orders(ds) == first
        assert self.orders(ds) == second

    def test_an_abandoned_epoch_counts(self, sharded):
        adatas, _, _ = sharded
        ds = Loader(batch_size=8, chunk_size=2, preload_nchunks=4).add_anndatas(adatas)
        next(iter(ds))
        abandoned = self.orders(ds)
        ds.set_epoch(1)
        assert self.orders(ds) == abandoned

    def test_threads_prefetch_and_depth_do_not_matter(self, sharded):
        adatas, _, _ = sharded
        orders = [
            self.orders(Loader(batch_size=8, chunk_size=2, preload_nchunks=4, **options).add_anndatas(adatas))
            for options in ({}, {"threads": 1}, {"threads": 5, "prefetch": 4}, {"prefetch": 0})
        ]
        assert orders[0]
        assert all(order == orders[0] for order in orders)

    def test_one_live_iterator(self, sharded):
        adatas, _, _ = sharded
        ds = Loader(batch_size=8).add_anndatas(adatas)
        first = iter(ds)
        next(first)
        second = iter(ds)
        next(second)
        with pytest.raises(RuntimeError, match="closed"):
            next(first)
        ds.close()
        with pytest.raises(RuntimeError, match="closed"):
            next(second)
        assert len(self.orders(ds)) == ds.n_obs

    def test_an_exhausted_iterator_stays_exhausted(self, sharded):
        adatas, _, _ = sharded
        it = iter(Loader(batch_size=50).add_anndatas(adatas))
        assert list(it)
        with pytest.raises(StopIteration):
            next(it)


def test_batches_of_a_window_have_one_index_type(tmp_path, monkeypatch):
    """Where some batches of a window need int64 and others do not, they are scattered together."""
    adatas, x, _ = named_stores(tmp_path, "v3 sharded")
    plain = list(Loader(batch_size=7, chunk_size=4, preload_nchunks=30, threads=1).add_anndatas(adatas))
    sizes = sorted(batch.data.nnz for batch in plain)
    assert sizes[0] < sizes[-1]
    monkeypatch.setattr(memory_module, "_MAX_INT32", sizes[len(sizes) // 2])
    for batch in each_batch(Loader(batch_size=7, chunk_size=4, preload_nchunks=30, threads=1).add_anndatas(adatas)):
        assert batch.data.indices.dtype == batch.data.indptr.dtype == np.int64
        np.testing.assert_array_equal(batch.data.to_scipy().toarray(), x[batch.index].toarray())


class TestThreads:
    def test_leaving_early_leaves_none(self, sharded):
        adatas, _, _ = sharded
        ds = Loader(batch_size=4, chunk_size=2, preload_nchunks=2, prefetch=3).add_anndatas(adatas)
        next(iter(ds))
        gc.collect()
        assert not background_threads()

    def test_dropping_the_loader_leaves_none(self, sharded):
        adatas, _, _ = sharded
        it = iter(Loader(batch_size=4, chunk_size=2, preload_nchunks=2, prefetch=3).add_anndatas(adatas))
        next(it)
        assert background_threads()
        del it
        gc.collect()
        assert not background_threads()

    def test_with_leaves_none(self, sharded):
        adatas, _, _ = sharded
        with Loader(batch_size=4, chunk_size=2, preload_nchunks=2).add_anndatas(adatas) as ds:
            it = iter(ds)
            next(it)
        assert not background_threads()

    def test_an_error_while_reading_reaches_the_loop(self, tmp_path):
        adatas, _, _ = named_stores(tmp_path, "v3 plain chunks")
        ds = Loader(batch_size=4, chunk_size=2, preload_nchunks=2).add_anndatas(adatas)
        for chunk in (tmp_path / "2.zarr/X/data/c").iterdir():
            chunk.write_bytes(b"these bytes are no chunk")
        with pytest.raises(StoreError, match="X/data") as caught:
            list(ds)
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert "read" in names
        assert not background_threads()


@pytest.mark.parametrize("library", ["pickle", "cloudpickle"])
def test_a_loader_pickles(library, sharded):
    """Ray, Grain and dask send loaders with cloudpickle, which takes apart what pickle refers to by name."""
    dumps = pytest.importorskip(library, reason=f"{library} is not installed").dumps
    adatas, x, obs = sharded
    ds = Loader(batch_size=8, seed=4).add_anndatas(adatas)
    next(iter(ds))
    copy = pickle.loads(dumps(ds))
    copy.set_epoch(0)
    check_epoch(copy, x, obs)


def test_zarr_configuration_is_left_alone(stores_folder, monkeypatch):
    """It is set while arrays are opened, and what the user had is back afterwards, also while zarr reads."""
    set_to = []
    real = zarr.config.set

    def watched(*args, **kwargs):
        set_to.append(args[0])
        return real(*args, **kwargs)

    theirs = "zarr.core.codec_pipeline.BatchedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": theirs}):
        monkeypatch.setattr(zarr.config, "set", watched)
        ds = Loader(batch_size=8).add_anndatas(stores_folder["v3 big endian"][0])
        assert {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"} in set_to
        n_set = len(set_to)
        assert zarr.config.get("codec_pipeline.path") == theirs
        for _ in each_batch(ds):
            assert zarr.config.get("codec_pipeline.path") == theirs
        assert len(set_to) == n_set


class TestCorruptStores:
    """What contradicts itself is refused with the store, the element and the rule, before anything is handed over."""

    def corrupt(self, tmp_path, array: str, change) -> Loader:
        adatas, _, _ = named_stores(tmp_path, "v3 plain chunks", sizes=(20,))
        writable = zarr.open_array(str(tmp_path / "0.zarr/X" / array), mode="r+")
        values = writable[:]
        change(values)
        writable[:] = values
        return Loader(batch_size=20).add_anndatas(adatas)

    @pytest.mark.parametrize("wrong", [-1, 30, 2**31 - 1])
    def test_a_column_out_of_range(self, tmp_path, wrong):
        def change(indices):
            indices[17] = wrong

        with pytest.raises(CorruptStoreError, match="X/indices.*limit"):
            list(self.corrupt(tmp_path, "indices", change))

    @pytest.mark.parametrize("wrong", [-5, 10**6, 0])
    def test_indptr_that_does_not_ascend(self, tmp_path, wrong):
        def change(indptr):
            indptr[11] = wrong

        with pytest.raises(CorruptStoreError, match="X/indptr.*ascend"):
            list(self.corrupt(tmp_path, "indptr", change))


class TestBadInput:
    def adata(self, tmp_path, **options) -> ad.AnnData:
        x = named_matrix(np.random.default_rng(0), range(5), range(4))
        return opened(write_store(str(tmp_path / "a.zarr"), x, awkward_obs(range(5)), **options))

    @pytest.mark.parametrize("name", ["batch_size", "chunk_size", "preload_nchunks", "threads"])
    @pytest.mark.parametrize("value", [0, -3])
    def test_sizes_below_one(self, name, value):
        with pytest.raises(ValueError, match=f"{name} must be >= 1, got {value}"):
            Loader(**({"batch_size": 4} | {name: value}))

    @pytest.mark.parametrize(
        ("arguments", "error"),
        [
            ({"batch_size": 4.0}, TypeError),
            ({"batch_size": True}, TypeError),
            ({"batch_size": 4, "seed": -1}, ValueError),
            ({"batch_size": 4, "seed": 2**64}, ValueError),
            ({"batch_size": 4, "prefetch": -1}, ValueError),
            ({"batch_size": 4, "shuffle": "yes"}, TypeError),
            ({"batch_size": 4, "partition": (0, 1)}, TypeError),
        ],
    )
    def test_other_arguments(self, arguments, error):
        with pytest.raises(error, match="must be"):
            Loader(**arguments)

    def test_nothing_added(self):
        with pytest.raises(InputError, match="use_collection, use_h5ad or add_anndatas"):
            iter(Loader(batch_size=4))
        with pytest.raises(InputError, match="at least one"):
            Loader(batch_size=4).add_anndatas([])

    def test_something_else_than_anndata(self):
        with pytest.raises(InputError, match=r"adatas\[0\] must be an AnnData, got str"):
            Loader(batch_size=4).add_anndatas(["store.zarr"])

    def test_csc(self, tmp_path):
        x = named_matrix(np.random.default_rng(0), range(5), range(4))
        adata = ad.AnnData(X=sp.csc_matrix(x))
        with pytest.raises(InputError, match="CSC"):
            Loader(batch_size=4).add_anndatas([adata])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            root = zarr.create_group(str(tmp_path / "csc.zarr"))
            ad.io.write_elem(root, "X", sp.csc_matrix(x))
        adata = ad.AnnData(X=ad.io.sparse_dataset(root["X"]))
        with pytest.raises(InputError, match="CSC"):
            Loader(batch_size=4).add_anndatas([adata])

    def test_no_x(self):
        adata = ad.AnnData(obs=pd.DataFrame(index=["a", "b"]))
        with pytest.raises(InputError, match=r"adatas\[0\] X: must be .* got nothing"):
            Loader(batch_size=4).add_anndatas([adata])

    def test_different_n_vars(self, tmp_path):
        adatas, _, _ = named_stores(tmp_path / "a", "v3 sharded", sizes=(5,))
        others, _, _ = named_stores(tmp_path / "b", "v3 sharded", sizes=(5,), n_vars=12)
        with pytest.raises(InputError, match=r"adatas\[1\]: must have the same genes as adatas\[0\]"):
            Loader(batch_size=4).add_anndatas([*adatas, *others])

    def test_different_var_names(self, tmp_path):
        first, second = self.adata(tmp_path), self.adata(tmp_path)
        second.var_names = ["g0", "g1", "other", "g3"]
        with pytest.raises(InputError, match=r"lacks 1 \['g2'\] and has 1 others \['other'\]"):
            Loader(batch_size=4).add_anndatas([first, second])

    def test_a_label_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match=r"adatas\[0\]: labels must be obs columns, got 'celltype'.*cell_type"):
            Loader(batch_size=4).add_anndatas([self.adata(tmp_path)], labels=["celltype"])

    def test_a_label_of_two_kinds(self, tmp_path):
        first, second = self.adata(tmp_path), self.adata(tmp_path)
        second.obs["cell_type"] = np.arange(5)
        with pytest.raises(InputError, match="obs\\['cell_type'\\] must be of one kind"):
            Loader(batch_size=4).add_anndatas([first, second], labels=["cell_type"])

    def test_no_collection(self, tmp_path):
        with pytest.raises(StoreError, match="not a collection"):
            Loader(batch_size=4).use_collection(tmp_path)


def test_categories_are_united_in_order_of_first_appearance(tmp_path):
    """Text, categories in other orders, missing ones, and booleans that are nullable in one store only."""
    obs = [
        pd.DataFrame({"a": pd.Categorical(["x", "y", None]), "b": [True, False, True], "n": [1, 2, 3]}),
        pd.DataFrame(
            {
                "a": ["z", "y", "y"],
                "b": pd.array([None, True, False], dtype="boolean"),
                "n": pd.array([None, 5, 6], dtype="Int32"),
            }
        ),
    ]
    adatas = [ad.AnnData(X=sp.csr_matrix(np.eye(3)), obs=o.set_index(o.index.astype(str))) for o in obs]
    ds = Loader(batch_size=6, shuffle=False).add_anndatas(adatas)
    batch = next(iter(ds))
    assert list(ds.categories["a"]) == ["x", "y", "z"]
    assert batch.codes["a"].tolist() == [0, 1, -1, 2, 1, 1]
    assert batch.codes["b"].tolist() == [1, 0, 1, -1, 1, 0]
    np.testing.assert_array_equal(batch.codes["n"], np.array([1, 2, 3, np.nan, 5, 6]))
    assert batch.labels["n"].isna().tolist() == [False, False, False, True, False, False]
    assert batch.labels["b"].isna().tolist() == [False, False, False, True, False, False]


def test_columns_that_some_stores_lack_are_missing_there(tmp_path):
    obs = [pd.DataFrame({"a": [1, 2], "b": [3, 4]}), pd.DataFrame({"b": [5, 6]})]
    adatas = [ad.AnnData(X=sp.csr_matrix(np.eye(2)), obs=o.set_index(o.index.astype(str))) for o in obs]
    with pytest.warns(UserWarning, match=r"obs columns are missing .* 'a' is not in adatas\[1\]"):
        ds = Loader(batch_size=4, shuffle=False).add_anndatas(adatas)
    codes = next(iter(ds)).codes
    np.testing.assert_array_equal(codes["a"], [1, 2, np.nan, np.nan])
    assert codes["b"].tolist() == [3, 4, 5, 6]
    with pytest.warns(UserWarning, match="'a' is not in"):
        assert list(next(iter(Loader(batch_size=4).add_anndatas(adatas, labels=["a"]))).codes) == ["a"]
    with pytest.raises(InputError, match=r"adatas\[0\]: labels must be obs columns, got 'c'"):
        Loader(batch_size=4).add_anndatas(adatas, labels=["c"])


def test_values_of_different_types_promote_as_numpy_does():
    adatas = [ad.AnnData(X=sp.csr_matrix(np.eye(3, dtype=dtype))) for dtype in (np.float32, np.int64)]
    batch = next(iter(Loader(batch_size=6).add_anndatas(adatas)))
    assert batch.data.data.dtype == np.result_type(np.float32, np.int64)
    np.testing.assert_array_equal(batch.data.to_scipy().toarray(), np.vstack([np.eye(3)] * 2)[batch.index])


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away here")
def test_cores_that_the_process_may_not_use_do_not_count():
    def alone() -> int:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        return loader_module.available_cores()

    assert in_a_fork(alone) == 1
    assert loader_module.available_cores() == len(os.sched_getaffinity(0))
