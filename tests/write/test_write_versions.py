"""Does a build read what AnnData reads, whichever version or program wrote the file?

``tests/data/anndata_versions.tar.xz`` holds small files that seven versions of AnnData wrote themselves. What today's
AnnData makes of them is the truth.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from annbatch import Loader, append_to_collection, create_anndata_collection
from annbatch.batches.label_rows import LabelReader
from annbatch.errors import InputError
from annbatch.plan.window import plan_readings
from annbatch.remote.request_pool import Requests
from annbatch.stores.collection import Collection
from annbatch.stores.label_columns import columns_of_group
from annbatch.stores.united_columns import merge_columns
from annbatch.write.inputs.matrix_rows import matrix_of, read_dense
from annbatch.write.inputs.opening import as_origins
from epochs import each_batch

pytestmark = pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning", "ignore:a collection keeps:UserWarning")

ARCHIVE = Path(__file__).parents[1] / "data" / "anndata_versions.tar.xz"
H5AD = [f"{version}.h5ad" for version in ("0.5", "0.6", "0.7", "0.8", "0.9", "0.12", "0.13")]
ZARR = ["0.7.v2.zarr", "0.8.v2.zarr", "0.9.v2.zarr", "0.12.v2.zarr", "0.12.v3.zarr", "0.13.v2.zarr", "0.13.v3.zarr"]
OPTIONS: dict[str, Any] = {"shuffle": False, "progress": False}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def truth(path: Path) -> ad.AnnData:
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def back(collection: Collection) -> ad.AnnData:
    (path,) = collection.store_paths
    return ad.read_zarr(path)


def dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def assert_same_column(found: pd.Series, expected: pd.Series) -> None:
    """Values, missing ones, and of a categorical its categories in their order."""
    if isinstance(expected.dtype, pd.CategoricalDtype):
        assert found.cat.categories.tolist() == expected.cat.categories.tolist()
        assert found.cat.ordered == expected.cat.ordered
    elif expected.dtype.kind in "biuf":
        assert found.dtype == expected.dtype
    assert found.isna().tolist() == expected.isna().tolist()
    assert found[found.notna()].tolist() == expected[expected.notna()].tolist()


def assert_same(found: ad.AnnData, expected: ad.AnnData) -> None:
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    assert found.var_names.tolist() == expected.var_names.tolist()
    assert list(found.obs) == [*expected.obs, "src_path"]
    assert list(found.var) == list(expected.var)
    for column in expected.obs:
        assert_same_column(found.obs[column], expected.obs[column])
    for column in expected.var:
        assert_same_column(found.var[column], expected.var[column])
    np.testing.assert_array_equal(dense(found.X), dense(expected.X))
    for name in ("layers", "obsm"):
        # anndata 0.13 lists X among the layers, under None.
        assert set(getattr(found, name)) - {None} == set(getattr(expected, name)) - {None}
        for key in set(getattr(expected, name)) - {None}:
            np.testing.assert_array_equal(dense(getattr(found, name)[key]), dense(getattr(expected, name)[key]))


@pytest.mark.parametrize("name", [*H5AD, *ZARR])
def test_files_of_every_version_give_what_anndata_reads(tmp_path: Path, files: Path, name: str):
    expected = truth(files / name)
    collection = create_anndata_collection(files / name, tmp_path / "store", **OPTIONS)
    assert_same(back(collection), expected)
    others = [f"{part}/{key}" for part in ("varm", "obsp", "varp") for key in getattr(expected, part)]
    whole = [part for part in ("raw", "uns") if getattr(expected, part)]
    assert collection.inputs[0].left_out == (*whole, *others)


@pytest.mark.parametrize("name", [*H5AD, *ZARR])
def test_raw_of_every_version(files: Path, name: str):
    expected = truth(files / name).raw
    with as_origins(files / name, None)[0].open() as root:
        var = root.var(raw=True)
        matrix = matrix_of(root.element("raw/X"), "raw/X")
        columns = np.arange(len(var))
        found = read_dense(matrix, slice(0, matrix.shape[0]), columns, len(var), "raw/X")
    assert var.index.tolist() == expected.var_names.tolist()
    assert list(var) == list(expected.var)
    for column in expected.var:
        assert_same_column(var[column], expected.var[column])
    np.testing.assert_array_equal(found, dense(expected.X))


def test_files_of_all_versions_make_one_collection(tmp_path: Path, files: Path):
    """A code names another category in each file; cells keep their own, also when grouped or appended."""
    paths = [files / name for name in (*H5AD, *ZARR)]
    truths = [truth(path) for path in paths]
    expected = pd.concat([t.obs.astype({"cell_type": object, "donor": object}) for t in truths])

    def assert_right(collection: Collection) -> None:
        obs = pd.concat([ad.read_zarr(path).obs.astype(object) for path in collection.store_paths])
        assert sorted(obs.index) == sorted(expected.index)
        for column in ("cell_type", "stage", "cluster", "donor", "n_counts", "age"):
            of_cell = expected.loc[obs.index, column]
            assert obs[column].isna().tolist() == of_cell.isna().tolist(), column
            assert obs[column].dropna().tolist() == of_cell.dropna().tolist(), column

    # anndata 0.5 knew no layers.
    grouped = create_anndata_collection(paths, tmp_path / "grouped", groupby="cell_type", layers=[], progress=False)
    assert_right(grouped)
    of_groups = back(grouped).obs["cell_type"].cat.codes.to_numpy()
    assert (np.diff(of_groups[of_groups >= 0]) >= 0).all()
    create_anndata_collection(paths[-3:], tmp_path / "store", layers=[], **OPTIONS)
    with pytest.warns(UserWarning, match="'layers/counts' is not in the collection"):
        appended = append_to_collection(paths[:-3], tmp_path / "store", **OPTIONS)
    assert_right(appended)
    with Loader(batch_size=16).use_collection(tmp_path / "store", labels=["cell_type"]) as ds:
        for batch in each_batch(ds):
            assert len(batch["labels"]) == len(batch["index"])


def test_what_zarr_no_longer_opens_is_refused(tmp_path: Path, files: Path):
    """anndata 0.6 wrote text to zarr with a codec that zarr 3 does not know; anndata cannot read it, either."""
    with pytest.raises(InputError, match=r"0\.6\.v2\.zarr: .*cannot be read as AnnData"):
        create_anndata_collection(files / "0.6.v2.zarr", tmp_path / "store", **OPTIONS)


def as_bytes(file: h5py.File) -> None:
    """Make every text attribute a fixed-length one, as HDF5.jl and R write them."""

    def change(node: Any) -> None:
        for name, value in dict(node.attrs).items():
            if isinstance(value, str):
                node.attrs[name] = np.bytes_(value.encode())
            elif isinstance(value, np.ndarray) and value.dtype == object:
                node.attrs[name] = np.array([v.encode() for v in value])

    change(file)
    file.visititems(lambda _, node: change(node))


def without_attributes(file: h5py.File) -> None:
    """Leave plain arrays: obs and var as groups of columns, whose index has a name that AnnData knows."""
    for key, index in (("obs", "obs_names"), ("var", "var_names")):
        columns = {"size": file[f"{key}/n_counts" if key == "obs" else f"{key}/length"][:]}
        names = file[f"{key}/_index"].asstr()[:]
        del file[key]
        file.create_dataset(f"{key}/{index}", data=names.astype(object), dtype=h5py.string_dtype())
        for name, values in columns.items():
            file[f"{key}/{name}"] = values
    for key in ("layers", "obsm"):
        del file[key]
    for name in list(file.attrs):
        del file.attrs[name]


def without_var(file: h5py.File) -> None:
    del file["var"]


def without_names(file: h5py.File) -> None:
    without_attributes(file)
    del file["obs/obs_names"]


def of_one_cell(file: h5py.File) -> None:
    """One cell, whose label is a fixed-length string without attributes."""
    for key in ("X", "obs", "layers", "obsm", "raw"):
        del file[key]
    file["X"] = np.ones((1, 4), np.float32)
    obs = file.create_group("obs")
    obs["obs_names"], obs["label"] = np.array(["only"], dtype=object), np.array([b"T"])


OTHERS: dict[str, tuple[str, Callable[[h5py.File], None]]] = {
    "bytes in attributes": ("0.12.h5ad", as_bytes),
    "bytes in attributes, 0.7": ("0.7.h5ad", as_bytes),
    "no attributes": ("0.8.h5ad", without_attributes),
    "no names": ("0.8.h5ad", without_names),
    "no var": ("0.9.h5ad", without_var),
    "one cell": ("0.9.h5ad", of_one_cell),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_programs_give_what_anndata_reads(tmp_path: Path, files: Path, kind: str):
    name, edit = OTHERS[kind]
    path = tmp_path / "other.h5ad"
    path.write_bytes((files / name).read_bytes())
    with h5py.File(path, "r+") as file:
        edit(file)
    expected = truth(path)
    assert_same(back(create_anndata_collection(path, tmp_path / "store", **OPTIONS)), expected)


@pytest.mark.parametrize("name", ZARR)
def test_label_columns_of_stores_of_every_version(files: Path, name: str):
    """What a loader makes of the obs of a zarr store."""
    group: Any = zarr.open_group(files / name, mode="r")["obs"]
    expected = truth(files / name).obs
    columns = merge_columns([(name, len(expected), columns_of_group(group, None, name, {}))]).columns
    assert [column.name for column in columns] == list(expected)
    rows = np.arange(len(expected))[::-1]
    plan = plan_readings(rows, np.array([0, len(rows)]), np.array([0, len(rows)]), 1)
    reader = LabelReader(columns)
    (labels,) = reader.read(plan, rows, reader.begin(plan, Requests()))
    found = labels.frame(rows)
    for column in expected:
        assert_same_column(found[column], expected[column].iloc[::-1])
