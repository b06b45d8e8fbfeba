"""What may go in, and what of it comes out?

1. Inputs of every kind give the cells that `anndata` reads from them.
2. X may come from elsewhere, elements may be chosen, and be dense.
3. Genes that differ, names that repeat and disks that are too small are handled as asked.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import Loader, create_anndata_collection
from annbatch.errors import InputError, OutputError
from annbatch.stores.collection import Collection
from annbatch.write.inputs.text_file import TextFile, distinct
from annbatch.write.shuffle import budget
from annbatch.write.shuffle.budget import parse_bytes
from datagen import named_adata, write_adata, write_inputs
from small_budget import small_budget

# Inputs hold raw, which is not kept.
pytestmark = pytest.mark.filterwarnings("ignore:a collection keeps:UserWarning")

CUT: dict[str, Any] = {"rows_per_store": 8, "chunk_elements": 8, "shard_elements": 64, "progress": False}


def cells(collection: Collection) -> ad.AnnData:
    return ad.concat([ad.read_zarr(path) for path in collection.store_paths], join="outer", merge="same")


def assert_same_x(collection: Collection, expected: ad.AnnData) -> None:
    found = cells(collection)
    assert sorted(found.obs_names) == sorted(expected.obs_names)
    x = expected[found.obs_names, found.var_names].X
    np.testing.assert_array_equal(found.X.toarray(), x.toarray() if sp.issparse(x) else x)


def compressed(path: Path, adata: ad.AnnData, compression: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_h5ad(path, compression=compression)
    return path


def tenx(path: Path, adata: ad.AnnData) -> Path:
    """The layout of Cell Ranger 3, as its documentation describes it."""
    x = sp.csr_matrix(adata.X).astype(np.int32)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array([name.encode() for name in adata.obs_names])
        group["data"], group["indices"], group["indptr"] = x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64)
        group["shape"] = np.array(x.shape[::-1], np.int32)
        features = group.create_group("features")
        features["id"] = np.array([name.encode() for name in adata.var_names])
        features["name"] = np.array([b"same"] * adata.n_vars)
        features["feature_type"] = np.array([b"Gene Expression"] * adata.n_vars)
    return path


def zarr_store(adata: ad.AnnData) -> zarr.storage.MemoryStore:
    store = zarr.storage.MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ad.io.write_elem(zarr.create_group(store), "/", adata)
    return store


KINDS: dict[str, Any] = {
    "gzip": lambda path, a: compressed(path / "a.h5ad", a, "gzip"),
    "lzf": lambda path, a: compressed(path / "a.h5ad", a, "lzf"),
    "in memory": lambda path, a: a,
    "backed": lambda path, a: ad.read_h5ad(write_adata(a, path / "a", "h5ad"), backed="r"),
    "10x": lambda path, a: tenx(path / "a.h5", a),
    "zarr store": lambda path, a: zarr_store(a),
}


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_every_kind(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    small_budget(monkeypatch)
    adata = named_adata(np.random.default_rng(0), range(30), range(20))
    given = KINDS[kind](tmp_path, adata)
    collection = create_anndata_collection(given, tmp_path / "store", **CUT)
    assert_same_x(collection, adata)
    if kind == "10x":
        var = ad.read_zarr(collection.store_paths[0]).var
        assert var["gene_symbols"].tolist() == ["same"] * 20


def test_a_function_loads_what_is_no_anndata(tmp_path: Path):
    paths = []
    for i in range(2):
        x = np.random.default_rng(i).integers(0, 5, (6, 4))
        paths.append(tmp_path / f"{i}.csv")
        pd.DataFrame(x, index=[f"cell{i}-{r}" for r in range(6)], columns=list("ABCD")).to_csv(paths[-1])

    def load(path: str) -> ad.AnnData:
        table = pd.read_csv(path, index_col=0)
        return ad.AnnData(table.to_numpy(np.float32), obs=table[[]], var=pd.DataFrame(index=table.columns))

    collection = create_anndata_collection(paths, tmp_path / "store", load=load, **CUT)
    assert_same_x(collection, ad.concat([load(str(path)) for path in paths]))
    assert set(cells(collection).obs["src_path"]) == set(map(str, paths))
    with pytest.raises(InputError, match="load must return AnnData, got str"):
        create_anndata_collection(paths, tmp_path / "other", load=lambda path: path, **CUT)  # type: ignore[arg-type,return-value]


def rich(rows: range) -> ad.AnnData:
    adata = named_adata(np.random.default_rng(rows.start), rows, range(10))
    adata.raw = named_adata(np.random.default_rng(9), rows, range(5, 25))
    adata.layers["counts"] = adata.X * 3
    adata.layers["scaled"] = adata.X.toarray() - 0.5
    adata.obsm["pca"] = np.random.default_rng(1).normal(size=(len(rows), 3))
    adata.obsm["umap"] = np.random.default_rng(2).normal(size=(len(rows), 2)).astype(np.float32)
    return adata


def test_x_from_a_layer_or_raw(tmp_path: Path):
    adata = rich(range(20))
    path = write_adata(adata, tmp_path / "a", "h5ad")
    layer = create_anndata_collection(path, tmp_path / "layer", x="layers/counts", **CUT)
    assert_same_x(layer, ad.AnnData(adata.layers["counts"], obs=adata.obs, var=adata.var))
    assert set(layer.types) == {"X", "layers/scaled"}
    raw = create_anndata_collection(path, tmp_path / "raw", x="raw/X", **CUT)
    assert_same_x(raw, adata.raw.to_adata())
    assert set(raw.types) == {"X"}


def test_chosen_elements(tmp_path: Path):
    paths = [write_adata(rich(rows), tmp_path / f"{rows.start}", "h5ad") for rows in (range(10), range(10, 20))]
    collection = create_anndata_collection(
        paths, tmp_path / "store", layers=["scaled"], obsm=["umap"], obs_columns=["donor", "age"], **CUT
    )
    found = ad.read_zarr(collection.store_paths[0])
    # anndata 0.13 lists X among the layers, under None.
    assert set(found.layers) - {None} == {"scaled"}
    assert set(found.obsm) == {"umap"}
    assert list(found.obs) == ["donor", "age", "src_path"]
    for option in ("layers", "obsm", "obs_columns"):
        with pytest.raises(InputError, match=rf"{option} must be in .* got \['gone'\]"):
            create_anndata_collection(paths, tmp_path / "other", **{option: ["gone"]}, **CUT)
    with pytest.raises(InputError, match=r"dense must name elements that are written, got \['layers/gone'\]"):
        create_anndata_collection(paths, tmp_path / "other", dense=["layers/gone"], **CUT)


def test_dense_elements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small_budget(monkeypatch)
    adatas = [rich(range(10)), rich(range(10, 20))]
    adatas[1].X = adatas[1].X.toarray()
    paths = [write_adata(adata, tmp_path / f"{i}", "zarr3") for i, adata in enumerate(adatas)]
    names = ["g7", "g1", "g3"]
    collection = create_anndata_collection(
        paths, tmp_path / "store", dense=["X", "layers/scaled"], var_names=names, **CUT
    )
    assert collection.types["X"].indices is None
    assert Collection.open(collection.path).stores == collection.stores
    collection.verify()
    expected = ad.concat([ad.read_zarr(path) for path in paths])
    with Loader(batch_size=20, layers=["scaled"]).use_collection(collection.path) as ds:
        (batch,) = list(ds)
    order = [name for path in collection.store_paths for name in ad.read_zarr(path).obs_names]
    wanted = expected[[order[i] for i in batch.index], names]
    x = wanted.X.toarray() if sp.issparse(wanted.X) else wanted.X
    np.testing.assert_array_equal(batch["data"], x)
    assert batch["data"].dtype == np.float32
    np.testing.assert_array_equal(batch["layers"]["scaled"], wanted.layers["scaled"])


def test_what_each_input_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small_budget(monkeypatch)
    paths = write_inputs(tmp_path, sizes=(30, 20))
    collection = create_anndata_collection(paths, tmp_path / "store", join="inner", **CUT)
    kept = ad.read_zarr(collection.store_paths[0]).var_names
    for path, entry in zip(paths, Collection.open(collection.path).inputs, strict=True):
        adata = ad.read_h5ad(path)
        lost = adata[:, ~adata.var_names.isin(kept)].X
        assert (entry.name, entry.n_obs, entry.n_vars) == (str(path), *adata.shape)
        assert (entry.genes_lost, entry.elements_lost, entry.counts_lost) == (3, lost.nnz, lost.sum())
        assert lost.nnz > 0


def test_genes_that_must_be_the_same(tmp_path: Path):
    rng = np.random.default_rng(0)
    first, other = named_adata(rng, range(5), range(6)), named_adata(rng, range(5, 9), range(1, 7))
    same = named_adata(rng, range(5, 9), range(6))[:, ::-1].copy()
    collection = create_anndata_collection([first, same], tmp_path / "store", join="same", **CUT)
    assert_same_x(collection, ad.concat([first, same]))
    with pytest.raises(InputError, match=r"adata_1: must have the same genes as adata_0 .* lacks 1 \['g0'\] and has 1"):
        create_anndata_collection([first, other], tmp_path / "other", join="same", **CUT)


def test_names_that_repeat(tmp_path: Path):
    paths = write_inputs(tmp_path, sizes=(5,))
    again = create_anndata_collection([*paths, *paths, *paths], tmp_path / "store", shuffle=False, **CUT)
    expected = [f"cell{r}{suffix}" for suffix in ("", "-1", "-2") for r in range(5)]
    assert cells(again).obs_names.tolist() == expected
    with pytest.raises(
        InputError, match=r"obs names must be unique \(obs_names='refuse'\), got more than one of \['cell0"
    ):
        create_anndata_collection([*paths, *paths], tmp_path / "other", obs_names="refuse", **CUT)


def test_new_names_meet_no_old_ones(tmp_path: Path):
    given = TextFile(tmp_path / "given.text")
    given.append(np.array(["a", "a-1", "a", "b", "a", "a-1", "ä"], dtype=object))
    others = TextFile(tmp_path / "others.text")
    others.append(np.array(["b", "a-2"], dtype=object))
    target = TextFile(tmp_path / "target.text")
    assert distinct(given, [others], target, "unique") == ["a", "b", "a", "a-1"]
    assert target.read(0, 7).tolist() == ["a", "a-1", "a-3", "b-1", "a-4", "a-1-1", "ä"]


def test_a_disk_that_is_too_small_is_refused_before_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (path,) = write_inputs(tmp_path, sizes=(9,))
    monkeypatch.setattr(budget.shutil, "disk_usage", lambda where: SimpleNamespace(free=10))
    with pytest.raises(OutputError, match=r"the build needs \d+ B to \d+ B of temporary space .* 10 B is free"):
        create_anndata_collection(path, tmp_path / "store", **CUT)
    assert not list(tmp_path.glob(".store*"))


@pytest.mark.parametrize(
    ("given", "nbytes"),
    [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("100000 kB", 10**8), (10**8, 10**8), ("1e9", None)],
)
def test_memory_limits(given: Any, nbytes: int | None):
    if nbytes is not None:
        assert parse_bytes(given) == nbytes
        return
    with pytest.raises(InputError, match="memory_limit must be like '2GB'"):
        parse_bytes(given)


def test_a_limit_that_cannot_be_kept_is_refused(tmp_path: Path):
    (path,) = write_inputs(tmp_path, sizes=(9,))
    with pytest.raises(InputError, match="memory_limit must be >= 64 MB, got '1MB'"):
        create_anndata_collection(path, tmp_path / "store", memory_limit="1MB", **CUT)
