"""Is everything that a batch can carry, X of any kind, layers, obsm, chosen genes, what the row numbers say?"""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import Emit, InputError, Loader, create_anndata_collection
from annbatch.stores import array_opening as opening_module
from datagen import awkward_obs, named_matrix

N_VARS = 23


@pytest.fixture(params=["direct", "zarr"])
def path_taken(request, monkeypatch):
    monkeypatch.setattr(opening_module, "DIRECT", request.param == "direct")
    return request.param


def dense_store(
    folder: Path, values: np.ndarray, chunks: tuple[int, int], shards: tuple[int, int] | None
) -> ad.AnnData:
    root = zarr.create_group(str(folder), overwrite=True)
    array = root.create_array("X", shape=values.shape, dtype=values.dtype, chunks=chunks, shards=shards)
    array[:] = values
    return ad.AnnData(X=array, obs=pd.DataFrame(index=[str(i) for i in range(len(values))]))


@pytest.fixture(scope="module")
def table() -> ad.AnnData:
    rng = np.random.default_rng(3)
    x = named_matrix(rng, range(90), range(N_VARS))
    return ad.AnnData(
        X=x,
        obs=awkward_obs(range(90)),
        var=pd.DataFrame(index=[f"g{c}" for c in range(N_VARS)]),
        layers={"doubled": sp.csr_matrix(x * 2), "other": named_matrix(rng, range(90), range(N_VARS), density=0.8)},
        obsm={"X_pca": rng.random((90, 6)), "X_umap": rng.random((90, 2)).astype(np.float32)},
    )


@pytest.fixture(scope="module")
def collection(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("carried")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table[:50].copy().write_h5ad(folder / "a.h5ad")
        table[50:].copy().write_h5ad(folder / "b.h5ad")
    create_anndata_collection(
        [folder / "a.h5ad", folder / "b.h5ad"],
        folder / "store",
        rows_per_store=40,
        chunk_elements=17,
        shard_elements=100,
        progress=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = [ad.read_zarr(path) for path in sorted((folder / "store").glob("*.zarr"))]
        return folder / "store", ad.concat(written, merge="same")


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("pad_rows", [False, True])
def test_layers_and_obsm_are_aligned_with_the_rows(collection, path_taken, layout, pad_rows):
    path, written = collection
    ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=4, layers=["other", "doubled"], obsm=["X_pca", "X_umap"])
    ds.use_collection(path)
    n_seen = 0
    for batch in ds.batches(Emit(layout=layout, pad_rows=pad_rows)):
        assert list(batch) == ["data", "labels", "index", "layers", "obsm"]
        rows = batch.index[batch.index >= 0]
        n_seen += len(rows)
        for found, expected in (
            (batch.data, written.X),
            (batch.layers["doubled"], written.layers["doubled"]),
            (batch.layers["other"], written.layers["other"]),
        ):
            found = found if layout == "dense" else found.to_scipy().toarray()
            np.testing.assert_array_equal(found[: len(rows)], expected[rows].toarray())
            assert not found[len(rows) :].any()
        for name in ("X_pca", "X_umap"):
            found = batch.obsm[name]
            assert found.dtype == written.obsm[name].dtype
            np.testing.assert_array_equal(found[: len(rows)], written.obsm[name][rows])
            assert not found[len(rows) :].any()
            assert found.ctypes.data % 64 == 0
    assert n_seen == 90


def test_what_was_not_asked_for_is_not_there(collection):
    path, _ = collection
    batch = next(iter(Loader(batch_size=8).use_collection(path)))
    assert list(batch) == ["data", "labels", "index"]
    assert batch.layers is None
    with pytest.raises(KeyError):
        batch["layers"]


@pytest.mark.parametrize(
    ("chunks", "shards"), [((7, 12), None), ((7, 12), (28, 12)), ((10**3, 12), None), ((7, 5), None)]
)
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.int64])
def test_dense_x(tmp_path, path_taken, chunks, shards, dtype):
    """Embeddings or images: rows of chunks as wide as the matrix are read directly, others by zarr."""
    values = (np.arange(61 * 12) % 251).reshape(61, 12).astype(dtype)
    parts = [values[:25], values[25:26], values[26:]]
    adatas = [dense_store(tmp_path / f"{i}.zarr", part, chunks, shards) for i, part in enumerate(parts)]
    for emit in (Emit(), Emit(pad_rows=True), Emit(dtype=np.dtype(np.float64), layout="dense")):
        ds = Loader(batch_size=9, chunk_size=4, preload_nchunks=3).add_anndatas(adatas)
        rows = []
        for batch in ds.batches(emit):
            index = batch.index[batch.index >= 0]
            rows += index.tolist()
            assert batch.data.dtype == (emit.dtype or dtype)
            np.testing.assert_array_equal(batch.data[: len(index)], values[index])
            assert not batch.data[len(index) :].any()
        assert sorted(rows) == list(range(61))


def test_dense_x_in_memory_with_chosen_genes():
    values = np.arange(60).reshape(10, 6).astype(np.float32)
    adata = ad.AnnData(X=values, var=pd.DataFrame(index=list("abcdef")))
    batch = next(iter(Loader(batch_size=10, var_names=["e", "a"]).add_anndatas([adata])))
    np.testing.assert_array_equal(batch.data, values[batch.index][:, [4, 0]])


@pytest.mark.parametrize(
    "genes", [["g1", "g4", "g20"], ["g20", "g0", "g7", "g6"], [f"g{c}" for c in range(N_VARS)], ["g3"]]
)
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_chosen_genes(collection, path_taken, genes, layout):
    path, written = collection
    ds = Loader(batch_size=8, chunk_size=4, preload_nchunks=4, var_names=genes, layers=["other"]).use_collection(path)
    assert ds.n_vars == len(genes)
    assert list(ds.var.index) == genes
    expected_x, expected_layer = written[:, genes].X, written[:, genes].layers["other"]
    rows = []
    for batch in ds.batches(Emit(layout=layout)):
        rows += batch.index.tolist()
        for found, expected in ((batch.data, expected_x), (batch.layers["other"], expected_layer)):
            if layout == "csr":
                found = found.to_scipy()
                assert found.has_canonical_format
                found = found.toarray()
            np.testing.assert_array_equal(found, expected[batch.index].toarray())
            assert found.dtype == np.float32
    assert sorted(rows) == list(range(90))


class TestDtype:
    def first(self, path, **options):
        return next(iter(Loader(batch_size=90, shuffle=False, **options).use_collection(path)))

    def test_values_come_back_in_the_type_that_they_had(self, collection):
        path, written = collection
        batch = self.first(path)
        assert written.X.dtype == np.uint16
        assert batch.data.data.dtype == np.float32

    @pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "uint16", "int64"])
    def test_another_type_that_holds_all_values(self, collection, path_taken, dtype):
        path, written = collection
        batch = self.first(path, dtype=dtype)
        assert batch.data.data.dtype == dtype
        np.testing.assert_array_equal(batch.data.to_scipy().toarray(), written.X.toarray())

    @pytest.mark.parametrize("dtype", ["int16", "float16", "bool", "uint8"])
    def test_a_type_that_might_not_is_refused_unless_asked_for(self, collection, path_taken, dtype):
        path, written = collection
        with pytest.raises(InputError, match=f"X: dtype {dtype} cannot hold all values of uint16"):
            self.first(path, dtype=dtype)
        batch = self.first(path, dtype=dtype, casting="unsafe")
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(batch.data.to_scipy().data, written.X.data.astype(dtype))

    def test_same_kind(self):
        adata = ad.AnnData(X=sp.csr_matrix(np.eye(3) / 3))
        with pytest.raises(InputError, match="same_kind"):
            Loader(batch_size=3, dtype="float32").add_anndatas([adata])
        ds = Loader(batch_size=3, dtype="float32", casting="same_kind").add_anndatas([adata])
        assert next(iter(ds)).data.data.dtype == np.float32


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"layers": ["no"]}, "layers/no is missing"),
            ({"obsm": ["no"]}, "obsm/no is missing"),
            ({"var_names": ["g0", "no"]}, "got 'no' \\(1 unknown\\)"),
        ],
    )
    def test_what_is_not_there(self, collection, options, message):
        path, _ = collection
        with pytest.raises(InputError, match=message):
            Loader(batch_size=8, **options).use_collection(path)

    def test_what_is_not_there_in_an_object(self):
        adata = ad.AnnData(X=sp.csr_matrix(np.eye(3)))
        with pytest.raises(InputError, match=r"adatas\[0\]: layers must hold 'no'"):
            Loader(batch_size=8, layers=["no"]).add_anndatas([adata])

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"var_names": "g0"}, TypeError),
            ({"var_names": ["g0", "g0"]}, ValueError),
            ({"layers": "counts"}, TypeError),
            ({"dtype": "datetime64[s]"}, TypeError),
            ({"casting": "whatever"}, ValueError),
        ],
    )
    def test_arguments(self, options, error):
        with pytest.raises(error, match="must"):
            Loader(batch_size=8, **options)

    def test_x_sparse_in_one_store_and_dense_in_another(self):
        adatas = [ad.AnnData(X=sp.csr_matrix(np.eye(3))), ad.AnnData(X=np.eye(3))]
        with pytest.raises(InputError, match="X must be of one kind"):
            Loader(batch_size=8).add_anndatas(adatas)
