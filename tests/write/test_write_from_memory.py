"""Is AnnData in memory the same input as the file that it would be written to?

1. What a file of it gives, it gives, too: values, categories, and layers where there is no X.
2. Names that no store can hold are changed with a warning; those that say nothing are refused before any work.
3. Whatever a build carries of it, a build that goes on notices that it has changed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import Loader, create_anndata_collection
from annbatch.errors import InputError
from annbatch.write.inputs.memory_input import stamp_of
from annbatch.write.inputs.opening import as_origins
from datagen import awkward_obs, named_adata, write_adata

# Inputs hold raw, which is not kept.
pytestmark = pytest.mark.filterwarnings("ignore:a collection keeps:UserWarning")

ONE: dict[str, Any] = {"shuffle": False, "progress": False}


def rich() -> ad.AnnData:
    rows, obs = range(12), awkward_obs(range(12))
    obs["text"] = np.array(list("bca") * 4, dtype=object)
    obs["stage"] = pd.Categorical(["late", "early"] * 6, ["late", "early"])
    adata = named_adata(np.random.default_rng(0), rows, range(7), obs=obs)
    adata.raw = named_adata(np.random.default_rng(1), rows, range(9))
    adata.layers["counts"] = adata.X * 2
    adata.layers["dense"] = adata.X.toarray() + 1
    adata.obsm["X_pca"] = np.arange(24.0).reshape(12, 2)
    adata.var["symbol"] = [f"s{i}" for i in range(7)]
    return adata


def read(collection: Any) -> ad.AnnData:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        return ad.read_zarr(collection.store_paths[0])


def test_a_file_gives_the_same(tmp_path: Path):
    adata = rich()
    from_memory = read(create_anndata_collection([adata], tmp_path / "memory", **ONE))
    from_file = read(
        create_anndata_collection([write_adata(adata.copy(), tmp_path / "a", "h5ad")], tmp_path / "o", **ONE)
    )
    # AnnData sorts the categories that it makes of text; a build keeps the order of the rows.
    obs = [found.obs.drop(columns="src_path") for found in (from_memory, from_file)]
    obs[0]["text"] = obs[0]["text"].cat.reorder_categories(obs[1]["text"].cat.categories)
    pd.testing.assert_frame_equal(*obs)
    pd.testing.assert_frame_equal(from_memory.var, from_file.var)
    np.testing.assert_array_equal(from_memory.X.toarray(), from_file.X.toarray())
    for name in ("counts", "dense"):
        np.testing.assert_array_equal(from_memory.layers[name].toarray(), from_file.layers[name].toarray())
    np.testing.assert_array_equal(from_memory.obsm["X_pca"], from_file.obsm["X_pca"])


def test_counts_in_a_layer_and_no_x(tmp_path: Path):
    adata = rich()
    counts, adata.X = adata.layers["counts"], None
    collection = create_anndata_collection([adata], tmp_path / "o", x="layers/counts", **ONE)
    np.testing.assert_array_equal(counts.toarray(), read(collection).X.toarray())
    with pytest.raises(InputError, match=r"adata_0: X is missing; x= may be one of \['raw/X', 'layers/counts'"):
        create_anndata_collection([adata], tmp_path / "p", **ONE)
    with pytest.raises(
        InputError, match=r"adatas\[0\] X: .* got nothing; to read a layer, pass AnnData\(X=adata.layers"
    ):
        Loader(batch_size=4).add_anndatas([adata])


NAMES = {"x/y": "x_y", "_index": "index_", "": "unnamed", 7: "7", "a b": "a b", ".": "_"}


def test_names_that_no_store_can_hold(tmp_path: Path):
    x = sp.csr_matrix(np.arange(6, dtype="f4").reshape(2, 3))
    columns = {name: [i, i + 1] for i, name in enumerate(NAMES)}
    adata = ad.AnnData(x, obs=pd.DataFrame({"free": [0, 0]}, index=["cell0", "cell1"]))
    adata._obs = pd.DataFrame(columns, index=pd.Index(["cell0", "cell1"], name="cell/id"))
    adata._var = pd.DataFrame({name: [*values, 0] for name, values in columns.items()}, index=list("ABC"))
    adata.layers["x/y"], adata.obsm["x/y"] = x * 2, np.ones((2, 2))
    with pytest.warns(UserWarning, match=r"adata_0: .* renamed") as said:
        collection = create_anndata_collection([adata], tmp_path / "o", layers=["x_y"], groupby=None, **ONE)
    messages = [str(warning.message) for warning in said]
    changed = ", ".join(f"{own!r} as {written!r}" for own, written in NAMES.items() if own != written)
    assert sorted(message.split(": ")[1] for message in messages) == ["layers", "obs", "obs index", "obsm", "var"]
    assert sum(message.endswith(changed) for message in messages) == 2
    found = read(collection)
    assert found.obs_names.tolist() == ["cell0", "cell1"]
    assert found.obs.index.name == "cell_id"
    for own, written in NAMES.items():
        assert found.obs[written].tolist() == columns[own]
        assert found.var[written].tolist() == [*columns[own], 0]
    np.testing.assert_array_equal(found.layers["x_y"].toarray(), (x * 2).toarray())
    np.testing.assert_array_equal(found.obsm["x_y"], np.ones((2, 2)))


def test_names_in_memory_are_labels_as_they_are():
    obs = pd.DataFrame({name: [i, i + 1] for i, name in enumerate(NAMES)}, index=["cell0", "cell1"])
    adata = ad.AnnData(sp.csr_matrix(np.ones((2, 2), "f4")))
    adata._obs = obs
    labels = next(iter(Loader(batch_size=2, shuffle=False).add_anndatas([adata]))).labels
    assert labels.columns.tolist() == [str(name) for name in NAMES]
    for i, name in enumerate(NAMES):
        assert labels[str(name)].tolist() == [i, i + 1]


@pytest.mark.parametrize("names", [["a", "a", "b"], [1, "b", 1]])
def test_a_name_that_says_nothing_is_refused(tmp_path: Path, names: list[Any]):
    adata = ad.AnnData(sp.csr_matrix(np.ones((2, 2), "f4")))
    adata._obs = pd.DataFrame([[1, 2, 3]] * 2, index=["c0", "c1"], columns=names)
    with pytest.raises(InputError, match="adata_0: obs: names must be unique, got more than one of .*rename or drop"):
        create_anndata_collection([adata], tmp_path / "o", **ONE)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"adatas\[0\]: obs must have one column '.', got 2; .*rename or drop"):
        Loader(batch_size=2).add_anndatas([adata])
    labels = next(iter(Loader(batch_size=2).add_anndatas([adata], labels=["b"]))).labels
    assert labels.columns.tolist() == ["b"]


def test_masks_are_not_lost(tmp_path: Path):
    for part in ("X", "layers", "obsm"):
        adata, masked = rich(), np.ma.masked_less(np.ones((12, 7), np.float32), 0)
        if part == "X":
            adata.X = masked
        else:
            getattr(adata, part)["masked"] = masked
        options = {} if part == "X" else {part: ["masked"]}
        with pytest.raises(InputError, match=f"{part}.* must not be a masked array"):
            Loader(batch_size=4, **options).add_anndatas([adata])
        with pytest.raises(InputError, match=f"{part}.* must not be a masked array|'masked' must be one array"):
            create_anndata_collection(adata, tmp_path / "store", **ONE, **options)


def test_values_that_few_libraries_tell_apart(tmp_path: Path):
    """pandas takes strings up to a NUL for the same, and nothing stores numbers of more than 64 bits."""
    adata = rich()
    adata.obs["text"] = np.array(["a\0b", "a", "a\0"] * 4, object)
    collection = create_anndata_collection(adata, tmp_path / "store", **ONE)
    options: dict[str, Any] = {"batch_size": 5, "shuffle": False}
    for ds in (Loader(**options).add_anndatas([adata], labels=["text"]), Loader(**options).use_collection(collection)):
        assert [text for batch in ds for text in batch.labels["text"]] == list(adata.obs["text"])
    as_strings = create_anndata_collection(adata, tmp_path / "strings", obs_as_strings=["text"], **ONE)
    assert as_strings.obs(["text"])["text"].tolist() == list(adata.obs["text"])
    before = stamp_of(adata)
    adata.obs["text"] = np.array(["a\0c", "a", "a\0"] * 4, object)
    assert stamp_of(adata) != before, "an interrupted build would resume with other values"
    adata.obs["wide"] = np.arange(12, dtype=np.longdouble)
    adata.obsm["nothing"] = np.zeros((12, 0))
    with pytest.warns(UserWarning, match="'obs/wide' .* at most 64 bits, got float128.*'obsm/nothing' has no columns"):
        create_anndata_collection(adata, tmp_path / "wide", **ONE)
    with pytest.raises(InputError, match=r"obs\['wide'\] must hold numbers of at most 64 bits"):
        Loader(**options).add_anndatas([adata])
    adata.var_names = [f"g\0{gene}" for gene in range(7)]
    with pytest.raises(InputError, match=r"gene names must not hold NUL, got 'g\\x000'"):
        Loader(**options).add_anndatas([adata], labels=[])


def test_lazy_matrices_are_refused(tmp_path: Path):
    array = pytest.importorskip("dask.array")
    adata = ad.AnnData(array.ones((4, 3), chunks=(2, 3)))
    with pytest.raises(InputError, match="adata_0: X must be stored or in memory, got a lazy dask array; .*write_zarr"):
        create_anndata_collection([adata], tmp_path / "o", **ONE)
    with pytest.raises(InputError, match=r"adatas\[0\] X: .*a lazy dask array; .*sparse_dataset"):
        Loader(batch_size=2).add_anndatas([adata])


def test_lazy_tables_are_read(tmp_path: Path):
    pytest.importorskip("xarray")
    adata = rich()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(tmp_path / "a.zarr")
        lazy = ad.experimental.read_lazy(tmp_path / "a.zarr")
        x = ad.io.sparse_dataset(zarr.open_group(tmp_path / "a.zarr")["X"])
        lazy = ad.AnnData(X=x, obs=lazy.obs, var=lazy.var)
        collection = create_anndata_collection([lazy], tmp_path / "o", **ONE)
        labels = next(iter(Loader(batch_size=12, shuffle=False).add_anndatas([lazy], labels=["text", "donor"]))).labels
    assert read(collection).obs["text"].tolist() == adata.obs["text"].tolist()
    assert labels["text"].tolist() == adata.obs["text"].tolist()
    assert labels.columns.tolist() == ["text", "donor"]


def set_value(matrix: Any) -> None:
    values = matrix.data if sp.issparse(matrix) else matrix
    values[0] = 99


def set_obs(adata: ad.AnnData, name: str, values: Any) -> None:
    adata.obs[name] = values


CHANGES: dict[str, Callable[[ad.AnnData], Any]] = {
    "X": lambda a: set_value(a.X),
    "no X": lambda a: setattr(a, "X", None),
    "the type of X": lambda a: setattr(a, "X", a.X.astype("f8")),
    "raw": lambda a: set_value(a.raw.X),
    "raw.var": lambda a: a.raw.var.__setitem__("new", 1),
    "a sparse layer": lambda a: set_value(a.layers["counts"]),
    "a dense layer": lambda a: set_value(a.layers["dense"]),
    "a layer less": lambda a: a.layers.pop("dense"),
    "obsm": lambda a: set_value(a.obsm["X_pca"]),
    "obs": lambda a: set_obs(a, "text", list("bcaa" * 3)),
    "an obs column's name": lambda a: setattr(a, "obs", a.obs.rename(columns={"text": "other"})),
    "categories": lambda a: set_obs(a, "stage", a.obs["stage"].cat.add_categories(["new"])),
    "their order": lambda a: set_obs(a, "stage", a.obs["stage"].cat.as_ordered()),
    "names of cells": lambda a: setattr(a, "obs_names", [f"new{i}" for i in range(a.n_obs)]),
    "names of genes": lambda a: setattr(a, "var_names", [f"new{i}" for i in range(a.n_vars)]),
    "var": lambda a: a.var.__setitem__("symbol", "s"),
}


def stamp(adata: ad.AnnData) -> object:
    return as_origins(adata, None)[0].stamp()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str):
    adata = rich()
    before = stamp(adata)
    assert before == stamp(rich()), "the same contents have the same stamp"
    CHANGES[change](adata)
    assert stamp(adata) != before


def test_a_change_of_backed_anndata_is_noticed(tmp_path: Path):
    path = write_adata(rich(), tmp_path / "a", "h5ad")
    backed = ad.read_h5ad(path, backed="r")
    before = stamp(backed)
    backed.obs["text"] = "c"
    assert stamp(backed) != before
    part = backed[:5]
    assert stamp(part) not in (before, stamp(backed))
    backed.file.close()


def test_a_build_that_goes_on_refuses_changed_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from annbatch.write import build

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    adata = rich()
    with monkeypatch.context() as patch:
        patch.setattr(build, "types_of_elements", interrupt)
        with pytest.raises(KeyboardInterrupt):
            create_anndata_collection([adata], tmp_path / "o", **ONE)
    set_value(adata.layers["counts"])
    with pytest.raises(OSError, match="inputs"):
        create_anndata_collection([adata], tmp_path / "o", **ONE)
    collection = create_anndata_collection([adata], tmp_path / "o", overwrite=True, **ONE)
    assert read(collection).layers["counts"].data[0] == 99
