"""Does a collection hold exactly the cells of its inputs?

The oracle is `anndata.concat`, compared cell by cell through the names.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from annbatch.stores.collection import Collection
from annbatch.write import create_anndata_collection
from datagen import FILE_KINDS, FORMS, FileKind, Form, awkward_obs, named_adata, write_adata, write_inputs

SMALL = {"rows_per_store": 8, "chunk_elements": 4, "shard_elements": 16, "progress": False}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def read_input(path: Path) -> ad.AnnData:
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def read_collection(collection: Collection) -> list[ad.AnnData]:
    return [ad.read_zarr(path) for path in collection.store_paths]


def plain(column: pd.Series[Any]) -> list[Any]:
    """Values of any kind of column as Python objects, missing ones as None."""
    return [None if pd.isna(value) else value for value in column.astype(object)]


def assert_same_cells(stores: Sequence[ad.AnnData], expected: ad.AnnData) -> None:
    """The stores together hold the cells of ``expected``, in any order, with all of their values."""
    names = [name for store in stores for name in store.obs_names]
    assert sorted(names) == sorted(expected.obs_names)
    genes = stores[0].var_names.tolist()
    assert sorted(genes) == sorted(expected.var_names)
    expected = expected[names, genes]
    assert all(store.var_names.tolist() == genes for store in stores)
    x = sp.vstack([sp.csr_matrix(store.X.astype(np.float64)) for store in stores])
    wanted = sp.csr_matrix(expected.X).astype(np.float64)
    np.testing.assert_array_equal(x.toarray(), wanted.toarray())
    for column in expected.obs:
        found = [value for store in stores for value in plain(store.obs[column])]
        assert found == plain(expected.obs[column]), column


@pytest.mark.parametrize(
    ("form", "kind", "join"),
    [
        ("csr", "h5ad", "outer"),
        ("csc", "zarr2", "outer"),
        ("dense", "zarr3", "outer"),
        ("csr", "h5ad", "inner"),
        *(
            pytest.param(form, kind, "outer", marks=pytest.mark.slow)
            for form, kind in product(FORMS, FILE_KINDS)
            if FORMS.index(form) != FILE_KINDS.index(kind)
        ),
    ],
)
def test_all_forms_and_files(tmp_path: Path, form: Form, kind: FileKind, join: Any):
    paths = write_inputs(tmp_path, sizes=(7, 5, 6), form=form, kind=kind)
    collection = create_anndata_collection(paths, tmp_path / "store", join=join, **SMALL)
    expected = ad.concat([read_input(path) for path in paths], join=join, fill_value=0)
    stores = read_collection(collection)
    assert_same_cells(stores, expected)
    # By first appearance; `anndata.concat` sorts them.
    assert stores[0].var_names.tolist() == [f"g{c}" for c in (range(18) if join == "outer" else range(6, 12))]
    assert [store.n_obs for store in stores] == [8, 8, 2]
    assert (collection.n_obs, collection.n_vars) == expected.shape
    collection.verify()


def bare_obs(first: int, size: int) -> pd.DataFrame:
    return pd.DataFrame({"row": range(first, first + size)}, index=[f"cell{r}" for r in range(first, first + size)])


@pytest.mark.filterwarnings("ignore:.* shares few genes")
@settings(max_examples=5)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    density=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    dtype=st.sampled_from([np.float32, np.float64, np.int32, np.int64, np.uint16]),
    forms=st.lists(st.sampled_from(FORMS), min_size=3, max_size=3),
    cut=st.tuples(st.integers(4, 12), st.integers(1, 7), st.integers(1, 5)),
    seed=st.integers(0, 2**32),
)
def test_any_cells_and_any_cut(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    density: float,
    dtype: Any,
    forms: list[Form],
    cut: tuple[int, int, int],
    seed: int,
):
    directory = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(seed)
    paths, row = [], 0
    for i, size in enumerate(sizes):
        genes = rng.permutation(15)[: rng.integers(1, 15)].tolist()
        adata = named_adata(
            rng, range(row, row + size), genes, form=forms[i], dtype=dtype, density=density, obs=bare_obs(row, size)
        )
        paths.append(write_adata(adata, directory / f"{i}", FILE_KINDS[i]))
        row += size
    rows_per_store, chunk, shards = cut
    collection = create_anndata_collection(
        paths,
        directory / "store",
        seed=seed,
        rows_per_store=rows_per_store,
        chunk_elements=chunk,
        shard_elements=chunk * shards,
        progress=False,
    )
    expected = ad.concat([read_input(path) for path in paths], join="outer", fill_value=0)
    assert_same_cells(read_collection(collection), expected)
    assert collection.types["X"].original == dtype


def test_given_genes_in_the_given_order(tmp_path: Path, paths: list[Path]):
    names = ["g13", "g2", "g7"]
    collection = create_anndata_collection(paths, tmp_path / "store", var_names=names, **SMALL)
    expected = ad.concat([read_input(path) for path in paths], join="outer", fill_value=0)[:, names]
    assert_same_cells(read_collection(collection), expected)
    assert read_collection(collection)[0].var_names.tolist() == names


def test_unshuffled_rows_stay_in_order(tmp_path: Path, paths: list[Path]):
    collection = create_anndata_collection(paths, tmp_path / "store", shuffle=False, **SMALL)
    names = [name for store in read_collection(collection) for name in store.obs_names]
    assert names == [f"cell{i}" for i in range(12)]
    assert (collection.shuffled, collection.seed) == (False, None)


def all_bytes(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path):
    # Chunks of several blosc blocks, which blosc's own threads would put in any order.
    rng = np.random.default_rng(0)
    genes = range(90)
    paths = [write_adata(named_adata(rng, range(3000), genes, density=0.6), tmp_path / "input", "h5ad")]
    cut = {"rows_per_store": 1500, "chunk_elements": 2**16, "progress": False}
    first, second, other = (
        create_anndata_collection(paths, tmp_path / name, seed=seed, **cut)
        for name, seed in (("first", 3), ("second", 3), ("other", 4))
    )
    assert all_bytes(first.path) == all_bytes(second.path)
    assert all_bytes(first.path).keys() == all_bytes(other.path).keys()
    assert all_bytes(first.path) != all_bytes(other.path)


def test_layout_on_disk(tmp_path: Path):
    paths = write_inputs(tmp_path, sizes=(40,))
    collection = create_anndata_collection(
        paths, tmp_path / "store", rows_per_store=40, chunk_elements=8, shard_elements=30, progress=False
    )
    assert sorted(p.name for p in collection.path.iterdir()) == ["chunk_0.zarr", "collection.json", "zarr.json"]
    root = zarr.open_group(collection.store_paths[0], mode="r")
    assert dict(root["X"].attrs) == {
        "encoding-type": "csr_matrix",
        "encoding-version": "0.1.0",
        "shape": [40, 12],
        "original-dtype": "float32",
    }
    for name, cname, clevel in (("data", "lz4hc", 2), ("indices", "lz4", 5)):
        array = root["X"][name]
        assert array.nchunks > 1
        assert (array.dtype, array.chunks, array.shards) == (np.uint16, (8,), (24,))
        (codec,) = array.metadata.to_dict()["codecs"]
        inner = codec["configuration"]
        assert inner["index_location"] == "end"
        assert [c["name"] for c in inner["codecs"]] == ["bytes", "blosc", "crc32c"]
        assert [c["name"] for c in inner["index_codecs"]] == ["bytes", "crc32c"]
        assert inner["codecs"][1]["configuration"] == {
            "typesize": 2,
            "cname": cname,
            "clevel": clevel,
            "shuffle": "shuffle",
            "blocksize": 0,
        }
    for name in ("X/indptr", "obs/cell_type/codes", "obs/n_counts", "obs/age/values", "obs/age/mask", "obs/doublet"):
        array = root[name]
        assert [c["name"] for c in array.metadata.to_dict()["codecs"]] == ["bytes"], name
        assert array.shards is None
        assert array.chunks == array.shape
    assert root["X/indptr"].dtype == np.int64
    matrix = ad.read_zarr(collection.store_paths[0]).X
    assert matrix.has_sorted_indices


def test_a_shard_is_no_longer_than_its_array(tmp_path: Path, paths: list[Path]):
    collection = create_anndata_collection(paths, tmp_path / "store", chunk_elements=16, progress=False)
    array = zarr.open_array(collection.store_paths[0] / "X" / "data", mode="r")
    assert array.shards[0] - array.chunks[0] < array.shape[0] <= array.shards[0]


def test_categories_are_the_same_union_in_every_store(tmp_path: Path):
    rng = np.random.default_rng(0)
    paths = []
    for i, categories in enumerate([("B", "T"), ("NK", "B", "Mono")]):
        rows = range(i * 6, i * 6 + 6)
        paths.append(
            write_adata(named_adata(rng, rows, range(4), obs=awkward_obs(rows, categories)), tmp_path / f"{i}", "h5ad")
        )
    collection = create_anndata_collection(paths, tmp_path / "store", **SMALL)
    stores = read_collection(collection)
    for store in stores:
        assert store.obs["cell_type"].cat.categories.tolist() == ["B", "T", "NK", "Mono"]
        assert not store.obs["cell_type"].cat.ordered
        assert store.obs["stage"].cat.categories.tolist() == ["early", "mid", "late"]
        assert store.obs["stage"].cat.ordered
        assert store.obs["src_path"].cat.categories.tolist() == [str(path) for path in paths]
    sources = pd.concat([store.obs["src_path"] for store in stores]).astype(str)
    assert all(sources[f"cell{r}"] == str(paths[r // 6]) for r in range(12))


def test_a_column_that_a_file_lacks_is_missing_there(tmp_path: Path):
    rng = np.random.default_rng(0)
    full, bare = named_adata(rng, range(6), range(4)), named_adata(rng, range(6, 12), range(4))
    bare.obs = bare.obs[[]]
    paths = [write_adata(full, tmp_path / "full", "zarr3"), write_adata(bare, tmp_path / "bare", "zarr2")]
    collection = create_anndata_collection(paths, tmp_path / "store", **SMALL)
    obs = pd.concat([store.obs for store in read_collection(collection)]).loc[[f"cell{r}" for r in range(12)]]
    assert obs.dtypes.astype(str).to_dict() == {
        "cell_type": "category",
        "stage": "category",
        "donor": "category",
        "n_counts": "float64",
        "score": "float32",
        "doublet": "boolean",
        "age": "Int64",
        "treated": "boolean",
        "src_path": "category",
    }
    assert obs["stage"].cat.ordered
    for name in full.obs:
        assert plain(obs[name]) == plain(full.obs[name]) + [None] * 6


def test_layers_and_obsm_that_all_inputs_share(tmp_path: Path):
    rng = np.random.default_rng(0)
    adatas = [named_adata(rng, range(7), range(6)), named_adata(rng, range(7, 12), range(3, 9))]
    for i, adata in enumerate(adatas):
        adata.layers["signed"] = adata.X.multiply(-0.5).tocsr()
        adata.layers["dense"] = adata.X.toarray() * 2
        adata.layers[f"only{i}"] = adata.X.copy()
        adata.obsm["pca"] = rng.normal(size=(adata.n_obs, 3)).astype([np.float32, np.float64][i])
        adata.obsm[f"only{i}"] = np.zeros((adata.n_obs, 2))
    paths = [write_adata(adata, tmp_path / f"{i}", "h5ad") for i, adata in enumerate(adatas)]
    with pytest.warns(UserWarning, match="elements are left out") as warned:
        collection = create_anndata_collection(paths, tmp_path / "store", **SMALL)
    missing = {"layers/only0": 1, "layers/only1": 0, "obsm/only0": 1, "obsm/only1": 0}
    assert str(warned[0].message).partition(": ")[2] == ", ".join(
        f"{name!r} is not in {paths[i]}" for name, i in missing.items()
    )
    expected = ad.concat(adatas, join="outer", fill_value=0)
    assert set(collection.types) == {"X", "layers/signed", "layers/dense"}
    assert collection.types["layers/dense"].stored == np.uint16
    assert collection.types["layers/signed"].stored == np.float32
    for store in read_collection(collection):
        wanted = expected[store.obs_names]
        # anndata 0.13 lists X among the layers, under None.
        assert set(store.layers) - {None} == {"signed", "dense"}
        assert set(store.obsm) == {"pca"}
        for name in ("signed", "dense"):
            np.testing.assert_array_equal(store.layers[name].toarray(), wanted.layers[name].toarray())
        np.testing.assert_array_equal(store.obsm["pca"], wanted.obsm["pca"])
        assert store.var_names.tolist() == wanted.var_names.tolist()
    array = zarr.open_array(collection.store_paths[0] / "obsm" / "pca", mode="r")
    assert (array.chunks, array.shards) == ((1, 3), (5, 3))


def test_obsm_tables_are_left_out_with_a_warning(tmp_path: Path):
    adata = named_adata(np.random.default_rng(0), range(3), range(4))
    adata.obsm["table"] = pd.DataFrame({"a": [1, 2, 3]}, index=adata.obs_names)
    path = write_adata(adata, tmp_path / "input", "h5ad")
    with pytest.warns(UserWarning, match="'obsm/table' is not a dense numeric array of two dimensions in .*input.h5ad"):
        collection = create_anndata_collection([path], tmp_path / "store", **SMALL)
    assert not ad.read_zarr(collection.store_paths[0]).obsm


def test_var_columns_on_which_the_inputs_agree(tmp_path: Path):
    rng = np.random.default_rng(0)
    adatas = [named_adata(rng, range(3), range(5)), named_adata(rng, range(3, 6), range(3, 9))]
    for i, adata in enumerate(adatas):
        adata.var["n_cells"] = i
        adata.var["kind"] = [["text"] * 5, range(6)][i]
        adata.var[f"only{i}"] = np.arange(adata.n_vars) % 2 == 0
    paths = [write_adata(adata, tmp_path / f"{i}", "h5ad") for i, adata in enumerate(adatas)]
    with pytest.warns(UserWarning, match="'var/kind' differs between inputs, 'var/n_cells' differs"):
        collection = create_anndata_collection(paths, tmp_path / "store", **SMALL)
    assert collection.inputs[1].left_out == ("var/n_cells", "var/kind")
    for store in read_collection(collection):
        assert list(store.var) == ["gene_id", "length", "only0", "only1"]
        assert store.var["gene_id"].tolist() == [f"ENSG{c:05d}" for c in range(9)]
        assert store.var["length"].tolist() == [c * 3 for c in range(9)]
        assert plain(store.var["only0"]) == [True, False, True, False, True, None, None, None, None]


def test_explicit_zeros_are_kept(tmp_path: Path):
    adata = named_adata(np.random.default_rng(0), range(3), range(4), density=1.0)
    adata.X.data[::2] = 0
    path = write_adata(adata, tmp_path / "input", "h5ad")
    collection = create_anndata_collection([path], tmp_path / "store", **SMALL)
    assert collection.stores[0].nnz == adata.X.nnz
    assert ad.read_zarr(collection.store_paths[0]).X.nnz == adata.X.nnz


def test_stores_of_a_collection_are_inputs_and_keep_their_sources(tmp_path: Path, paths: list[Path]):
    first = create_anndata_collection(paths, tmp_path / "first", **SMALL)
    second = create_anndata_collection(first.store_paths, tmp_path / "second", seed=1, **SMALL)
    expected = ad.concat(read_collection(first), join="outer", fill_value=0)
    assert_same_cells(read_collection(second), expected)
    assert second.types["X"].stored == np.uint16


def test_one_path_is_a_list_of_one(tmp_path: Path):
    (path,) = write_inputs(tmp_path, sizes=(4,))
    assert create_anndata_collection(str(path), tmp_path / "a", **SMALL).n_obs == 4
    assert create_anndata_collection(path, str(tmp_path / "b"), **SMALL).n_obs == 4


def test_nonfinite_values_if_asked(tmp_path: Path):
    adata = named_adata(np.random.default_rng(0), range(3), range(4), density=1.0)
    adata.X.data[:2] = [np.nan, -np.inf]
    path = write_adata(adata, tmp_path / "input", "h5ad")
    collection = create_anndata_collection([path], tmp_path / "store", shuffle=False, allow_nonfinite=True, **SMALL)
    np.testing.assert_array_equal(ad.read_zarr(collection.store_paths[0]).X.toarray(), adata.X.toarray())


def test_progress_can_be_silenced(tmp_path: Path, paths: list[Path], capfd: pytest.CaptureFixture[str]):
    quiet = {key: value for key, value in SMALL.items() if key != "progress"}
    create_anndata_collection(paths, tmp_path / "quiet", progress=False, **quiet)
    assert capfd.readouterr() == ("", "")
    create_anndata_collection(paths, tmp_path / "loud", progress=True, **quiet)
    shown = capfd.readouterr().err
    assert all(what in shown for what in ("opening", "obs", "planning", "reading", "writing", "temporary space"))


def test_manifest_says_what_was_written(tmp_path: Path, paths: list[Path]):
    collection = create_anndata_collection(paths, tmp_path / "store", seed=5, **SMALL)
    manifest = json.loads((collection.path / "collection.json").read_text())
    assert (manifest["shuffled"], manifest["seed"], manifest["n_obs"], manifest["n_vars"]) == (True, 5, 12, 15)
    assert manifest["types"]["X"] == {"stored": "uint16", "original": "float32", "indices": "uint16"}
    assert manifest["obs_columns"][-1] == "src_path"
    for store, path in zip(manifest["stores"], collection.store_paths, strict=True):
        files = {str(p.relative_to(path)): p.stat().st_size for p in path.rglob("*") if p.is_file()}
        assert {name: entry["nbytes"] for name, entry in store["files"].items()} == files
        assert store["nnz"] == ad.read_zarr(path).X.nnz


def test_the_users_configuration_stays_untouched(tmp_path: Path, paths: list[Path]):
    before, filters = copy.deepcopy(zarr.config.config), list(warnings.filters)
    create_anndata_collection(paths, tmp_path / "store", **SMALL)
    assert zarr.config.config == before
    assert warnings.filters == filters
