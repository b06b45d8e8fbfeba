"""Are `.h5ad` files of all writers read in place as anndata reads them, or refused with a remedy?

The files are those that versions of anndata wrote themselves (``tests/data/anndata_versions.tar.xz``), and what anndata
writes today with the options, filters and contents that people use.
"""

from __future__ import annotations

import importlib.util
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

from annbatch import InputError, Loader
from datagen import named_adata
from epochs import each_batch

hdf5plugin = pytest.importorskip("hdf5plugin", reason="hdf5plugin is not installed")

pytestmark = pytest.mark.filterwarnings(
    "ignore::anndata.OldFormatWarning",
    "ignore:obs columns are missing in the rows of stores that lack them",
)

ARCHIVE = Path(__file__).parents[1] / "data" / "anndata_versions.tar.xz"
VERSIONS = ("0.5", "0.6", "0.7", "0.8", "0.9", "0.12", "0.13")
N_OBS, N_VARS = 40, 12
OPTIONS: dict[str, Any] = {"batch_size": 16, "chunk_size": 3, "preload_nchunks": 8, "threads": 1}


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("versions")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return [folder / f"{version}.h5ad" for version in VERSIONS]


def dense(matrix: Any) -> np.ndarray[Any, Any]:
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def check(ds: Loader, truths: list[ad.AnnData], columns: list[str], where: str) -> None:
    """Compare an epoch with what anndata reads: X, the layers that are read, and obs columns."""
    x = np.concatenate([dense(truth.X) for truth in truths])
    obs = pd.concat([truth.obs[columns].astype(object) for truth in truths])
    seen = []
    for batch in each_batch(ds):
        found = batch.data if isinstance(batch.data, np.ndarray) else batch.data.to_scipy().toarray()
        np.testing.assert_array_equal(found, x[batch.index], where)
        assert found.dtype == x.dtype, where
        for name, layer in (batch.layers or {}).items():
            truth = np.concatenate([dense(one.layers[name]) for one in truths])
            np.testing.assert_array_equal(layer, truth[batch.index], where)
        for column in columns:
            got, wanted = batch.labels[column].astype(object), obs[column].iloc[batch.index]
            assert got.isna().tolist() == wanted.isna().tolist(), (where, column)
            assert got.dropna().tolist() == wanted.dropna().tolist(), (where, column)
        seen.append(batch.index)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(len(x)))


def test_every_version(versions: list[Path]) -> None:
    """Each alone, and all together: their categories differ. A layer that is stored by columns is refused."""
    truths = [ad.read_h5ad(path) for path in versions]
    for path, truth in zip(versions, truths, strict=True):
        # anndata 0.5 knew no layers.
        layers = [] if path.stem == "0.5" else ["counts"]
        ds = Loader(**OPTIONS, layers=layers).use_h5ad(path)
        check(ds, [truth], list(truth.obs), path.name)
        with pytest.raises(InputError, match="layers/by_gene is missing|must be stored by rows.*create_anndata"):
            Loader(**OPTIONS, layers=["by_gene"]).use_h5ad(path)
    columns = ["cell_type", "stage", "cluster", "donor", "n_counts", "score", "doublet"]
    check(Loader(**OPTIONS).use_h5ad(versions, labels=columns), truths, columns, "all versions")


def cells(**options: Any) -> ad.AnnData:
    return named_adata(np.random.default_rng(0), range(N_OBS), range(N_VARS), **options)


def of_dtype(dtype: str) -> ad.AnnData:
    found = cells()
    found.X = found.X.astype(dtype)
    return found


def unsorted() -> ad.AnnData:
    found = cells()
    x = found.X
    for a, b in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        x.indices[a:b], x.data[a:b] = x.indices[a:b][::-1].copy(), x.data[a:b][::-1].copy()
    x.has_sorted_indices = False
    return found


def full() -> ad.AnnData:
    """Much of what has a place in a file beside X."""
    found = cells()
    found.raw = found.copy()
    found.layers["csc"] = found.X.tocsc()
    found.obsm["pca"] = np.ones((N_OBS, 3))
    found.obsp["distances"] = sp.identity(N_OBS, format="csr")
    found.varm["loadings"] = np.ones((N_VARS, 2), np.float32)
    found.uns = {
        "log1p": {"base": np.e},
        "colors": np.array(["#000000", "#ffffff"], dtype=object),
        "neighbors": {"params": {"method": "umap", "n": 15}, "table": pd.DataFrame({"a": [1, 2]})},
        "matrix": sp.identity(3, format="csc"),
        "title": "cells",
    }
    return found


def by_filter(filter_: Any) -> dict[str, Any]:
    """Give what `write_h5ad` takes for one of hdf5plugin's filters; those of blosc crash on its text columns."""
    return {"compression": filter_["compression"], "compression_opts": filter_["compression_opts"]}


# How each is made, what `write_h5ad` is told, and whether the kernels read X.
WRITTEN: dict[str, tuple[Callable[[], ad.AnnData], dict[str, Any], bool]] = {
    "plain": (cells, {}, True),
    "gzip": (cells, {"compression": "gzip"}, True),
    "gzip 9": (cells, {"compression": "gzip", "compression_opts": 9}, True),
    "lzf": (cells, {"compression": "lzf"}, True),
    "zstd": (cells, by_filter(hdf5plugin.Zstd(clevel=5)), True),
    "lz4": (cells, by_filter(hdf5plugin.LZ4()), False),
    "bitshuffle": (cells, by_filter(hdf5plugin.Bitshuffle()), False),
    "dense": (lambda: cells(form="dense"), {}, True),
    "dense lzf": (lambda: cells(form="dense"), {"compression": "lzf"}, True),
    "as_dense": (cells, {"as_dense": ["X"]}, True),
    "bool": (lambda: of_dtype("bool"), {}, True),
    "bool gzip": (lambda: of_dtype("bool"), {"compression": "gzip"}, True),
    "uint16": (lambda: of_dtype("u2"), {}, True),
    "int64": (lambda: of_dtype("i8"), {"compression": "lzf"}, True),
    "float64": (lambda: of_dtype("f8"), {}, True),
    "columns out of order": (unsorted, {}, True),
    "much beside X": (full, {"compression": "gzip"}, True),
    "one cell": (lambda: cells()[:1].copy(), {"compression": "gzip"}, True),
    "no elements": (lambda: ad.AnnData(sp.csr_matrix((3, 4), dtype="f4")), {"compression": "gzip"}, True),
    "no genes": (lambda: cells()[:, :0].copy(), {}, True),
}


def test_what_anndata_writes(tmp_path: Path) -> None:
    for name, (make, options, is_direct) in WRITTEN.items():
        path = tmp_path / f"{name}.h5ad"
        make().write_h5ad(path, **options)
        truth = ad.read_h5ad(path)
        ds = Loader(**OPTIONS).use_h5ad(path)
        assert (ds._opened().stores[0].matrices["X"].slow is None) == is_direct, (name, repr(ds))
        check(ds, [truth], list(truth.obs), name)
        assert ds.var.equals(truth.var), name


@pytest.mark.filterwarnings("ignore:Moving element:FutureWarning")
def test_a_file_of_scanpy() -> None:
    """One that many programs read; scanpy need not be imported for that."""
    scanpy = importlib.util.find_spec("scanpy")
    if scanpy is None or scanpy.origin is None:
        pytest.skip("scanpy is not installed")
    path = Path(scanpy.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
    truth = ad.read_h5ad(path)
    check(Loader(**OPTIONS).use_h5ad(path), [truth], list(truth.obs), "scanpy")


def test_obsm_in_one_array(tmp_path: Path) -> None:
    adata = cells()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        del file["obsm"]
        file["obsm"] = np.zeros(adata.n_obs, [("X_pca", np.float32, (5,))])
    with pytest.raises(InputError, match="obsm must be a group to be read in place, got one array.*before 0.7"):
        Loader(**OPTIONS, obsm=["X_pca"]).use_h5ad(tmp_path / "cells.h5ad")


def test_a_sparse_matrix_in_obsm(tmp_path: Path) -> None:
    adata = cells()
    adata.obsm["some"] = adata.X.tocsr()[:, :5]
    adata.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    for batch in each_batch(Loader(**OPTIONS, obsm=["some"]).use_h5ad(tmp_path / "cells.h5ad", labels=[])):
        found = batch["obsm"]["some"].to_scipy()
        np.testing.assert_array_equal(found.toarray(), adata.obsm["some"][batch.index].toarray())


def test_a_file_without_cells(tmp_path: Path) -> None:
    """It adds no rows; alone it is refused."""
    for name, rows in (("none", slice(0, 0)), ("some", slice(0, 9)), ("more", slice(9, 40))):
        cells()[rows].copy().write_h5ad(tmp_path / f"{name}.h5ad", compression="gzip")
    paths = [tmp_path / f"{name}.h5ad" for name in ("none", "some", "none", "more")]
    check(Loader(**OPTIONS).use_h5ad(paths, labels=["n_counts"]), [cells()], ["n_counts"], "none")
    with pytest.raises(InputError, match=r"at least one row, got none in .*none\.h5ad"):
        Loader(**OPTIONS).use_h5ad(tmp_path / "none.h5ad")


def tenx(path: Path) -> None:
    """Write what Cell Ranger writes: a matrix of genes × cells by columns."""
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        x = cells().X.tocsr()
        for key in ("data", "indices", "indptr"):
            matrix[key] = getattr(x, key)
        matrix["shape"] = np.array([N_VARS, N_OBS])
        matrix["barcodes"] = np.array([b"A"] * N_OBS)
        matrix["features/id"] = np.array([b"g"] * N_VARS)


def loom(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["matrix"] = cells().X.toarray().T
        for key in ("row_attrs", "col_attrs", "layers"):
            file.create_group(key)


def mudata(path: Path) -> None:
    cells().write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file.attrs["encoding-type"] = "MuData"
        file.move("X", "mod/rna/X")


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "cells.h5": (tenx, r"\['matrix'\]"),
    "cells.loom": (loom, "col_attrs"),
    "cells.h5mu": (mudata, "'MuData'"),
}


def test_other_formats_are_refused(tmp_path: Path) -> None:
    for name, (make, held) in OTHERS.items():
        make(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: must be AnnData.*{held}.*create_anndata_collection"):
            Loader(**OPTIONS).use_h5ad(tmp_path / name)
